"""What runs inside the actors of a `RayPool`, and how tensors get there and back: as arrays, which Ray does not copy.

Imported only while a session is open, since Ray reads its settings when it is imported. It does not import torch, so
that a worker whose function needs none starts without it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util import deregister_serializer, register_serializer

from core.pool.outcome import TooLarge, attempt
from core.pool.protocol import Failure, released
from core.pool.tensors import as_array, as_tensor

_held: dict[str, ray.ObjectRef[Any]] = {}  # what this process may read, by the name of the shared value
_read: dict[str, Any] = {}  # what it has read: views of the object store, not copies


def hold(name: str, ref: "ray.ObjectRef[Any]") -> None:
    """Makes a shared value readable in this process."""
    _held[name] = ref


def drop(name: str) -> None:
    """Lets go of a shared value; Ray frees it when every process has."""
    _held.pop(name, None)
    _read.pop(name, None)


def read(name: str) -> Any:
    """A shared value. Raises ConfigError if it was released."""
    if name not in _read:
        if name not in _held:
            raise released()
        _read[name] = ray.get(_held[name])
    return _read[name]


class Worker:
    """One actor: does the items it is given, one after the other, with the function of the run it is in."""

    def __init__(self, cpus: float, gpus: float, max_result_bytes: int) -> None:
        threads = max(1, int(cpus))
        os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when it is imported
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # without a share of a GPU it sees none
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        self._max_result_bytes = max_result_bytes
        self._tensors_travel = False
        self._fn: Callable[[Any], Any]

    def begin(self, fn: "list[ray.ObjectRef[Any]]") -> str | Failure:
        """Loads the function of a run; answers with where this worker is."""
        try:
            self._fn = ray.get(fn[0])
        except Exception as error:  # noqa: BLE001 - the driver raises it
            return Failure.of(error)
        address: Any = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return f"process {os.getpid()} on {address}"

    def work(self, item: Any) -> tuple[float, Any] | Failure | TooLarge:
        """(seconds, result), or why there is none."""
        outcome = attempt(self._fn, item, self._max_result_bytes)
        if not self._tensors_travel and "torch" in sys.modules:
            _register()
            self._tensors_travel = True
        return outcome

    def hold(self, shared: "dict[str, list[ray.ObjectRef[Any]]]") -> None:
        """Takes the handles of shared values; they are read when they are used."""
        for name, ref in shared.items():
            hold(name, ref[0])

    def drop(self, names: list[str]) -> None:
        """Lets go of shared values."""
        for name in names:
            drop(name)


@contextmanager
def tensors_as_arrays() -> Iterator[None]:
    """Within it, whatever Ray serializes in this process holds its tensors as arrays, detached and on the CPU."""
    if "torch" not in sys.modules:
        yield
        return
    _register()
    try:
        yield
    finally:
        deregister_serializer(sys.modules["torch"].Tensor)


def _register() -> None:
    register_serializer(sys.modules["torch"].Tensor, serializer=as_array, deserializer=as_tensor)
