"""Strategies that withstand clients which send anything: each sees every update of a round, and counts each once."""
