"""Federated learning on Flower: clients that keep their data, one app, and the same numbers on every engine."""
