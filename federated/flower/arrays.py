"""Flower's arrays, read at once: their own way parses each array's header as a Python expression."""

import io
import math
from functools import lru_cache
from typing import Any

import flwr.app
import numpy as np

STYPE = "numpy.ndarray"  # what Flower calls the bytes of np.save


class Array(flwr.app.Array):
    """A Flower array in every respect; `numpy` takes a tenth of the time where NumPy wrote it in the usual way."""

    def numpy(self) -> "np.ndarray[Any, Any]":
        shape, data = tuple(self.shape), self.data
        try:
            kind = np.dtype(self.dtype)
            header = header_of(shape, kind)
        except (TypeError, ValueError):  # of a form that Flower refuses in its own words
            return super().numpy()
        usual = self.stype == STYPE and not kind.hasobject and data.startswith(header)
        if not usual or len(data) != len(header) + math.prod(shape) * kind.itemsize:
            return super().numpy()
        return np.frombuffer(data, kind, offset=len(header)).reshape(shape).copy()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, flwr.app.Array):
            return NotImplemented
        return (self.dtype, self.shape, self.stype, self.data) == (other.dtype, other.shape, other.stype, other.data)

    __hash__ = None  # type: ignore[assignment]  # as Flower's


def copy_of(array: flwr.app.Array) -> Array:
    """A new array with the same content. Its constructor takes long to find out what it was given."""
    new = Array.__new__(Array)
    vars(new).update(dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data)
    return new


@lru_cache(maxsize=1024)
def header_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What np.save writes before the numbers of a C-ordered array."""
    buffer = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()
