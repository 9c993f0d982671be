"""A model of two arrays that a node pulls towards its partition's number."""

import numpy as np


def initial() -> list[np.ndarray]:
    return [np.zeros((2, 3), dtype=np.float32), np.zeros((), dtype=np.float32)]


def train(arrays: list[np.ndarray], target: float, lr: float, steps: int) -> list[np.ndarray]:
    for _ in range(steps):
        arrays = [np.asarray(array - lr * (array - target), dtype=np.float32) for array in arrays]
    return arrays
