"""Frames of models that are nothing but a matrix, a bias and batch statistics."""

import torch

from core.optim.stacked import Layout, Place
from core.population.frame import Frame


def frame_of(matrix: tuple[int, int], bias: int = 0, statistics: int = 0) -> Frame:
    """P is the matrix and the bias; D adds the statistics."""
    rows, columns = matrix
    at = rows * columns
    places = [Place("network.weight", torch.Size(matrix), 0, at)]
    if bias:
        places.append(Place("network.bias", torch.Size([bias]), at, at + bias))
    end = places[-1].end
    buffers = (Place("network.mean", torch.Size([statistics]), end, end + statistics),) if statistics else ()
    return Frame(Layout(tuple(places), 0, at), buffers)
