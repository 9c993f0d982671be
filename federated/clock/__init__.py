"""Time and devices, simulated: who is asked, who is late, and when each reply arrives, planned before anything is trained."""
