"""Simulated time and devices: who is asked, who is late, when replies arrive, planned before anything is trained."""
