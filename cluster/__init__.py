"""Hanse on Ray: the same recipes on many workers. Imports core and ray, never flwr."""
