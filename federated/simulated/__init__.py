"""The parts of a simulated Flower federation beside its grid: a node, and what is told of the messages."""
