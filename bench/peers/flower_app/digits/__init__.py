"""A Flower app that knows nothing of this project."""
