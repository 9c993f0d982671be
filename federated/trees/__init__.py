"""Boosted trees across a federation, by Flower's own strategies: clients grow trees, the server collects them.

The library is the extra `trees`; whoever grows or asks trees needs it: the server for its empty model, every client.
"""
