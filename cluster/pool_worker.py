"""What runs inside the actors of a `RayPool`, and how tensors get there and back: as arrays, which Ray does not copy.

Imported only while a session is open, since Ray reads its settings when it is imported. It does not import torch, so
that a worker whose function needs none starts without it.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.util import deregister_serializer, register_serializer

from core.pool import Failure, released

if TYPE_CHECKING:
    import torch

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


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A result that was not sent, and its bytes."""

    size: int


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
        began = time.perf_counter()
        try:
            result = self._fn(item)
        except BaseException as error:  # noqa: BLE001 - the driver raises it; SystemExit would end the actor
            return Failure.of(error)
        seconds = time.perf_counter() - began
        if (size := bytes_of(result)) > self._max_result_bytes:
            return TooLarge(size)
        if not self._tensors_travel and "torch" in sys.modules:
            _register()
            self._tensors_travel = True
        return seconds, result

    def hold(self, shared: "dict[str, list[ray.ObjectRef[Any]]]") -> None:
        """Takes the handles of shared values; they are read when they are used."""
        for name, ref in shared.items():
            hold(name, ref[0])

    def drop(self, names: list[str]) -> None:
        """Lets go of shared values."""
        for name in names:
            drop(name)


def bytes_of(value: Any) -> int:
    """Bytes of the tensors, arrays, strings and bytes in a tree of dicts, lists, tuples, sets and dataclasses."""
    total, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str | bytes | bytearray):
            total += len(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            waiting.extend(value)
        elif isinstance(size := getattr(value, "nbytes", 0), int) and size:
            total += size
        elif dataclasses.is_dataclass(value):
            waiting.extend(getattr(value, field.name) for field in dataclasses.fields(value))
    return total


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
    register_serializer(sys.modules["torch"].Tensor, serializer=_to_array, deserializer=_to_tensor)


def _to_array(tensor: "torch.Tensor") -> tuple[Any, ...]:
    """(bytes, name of the type, shape); bytes, since NumPy has no bfloat16. A sparse, quantized or meta tensor in
    torch's own way: (function, arguments)."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        function, arguments = tensor.__reduce_ex__(2)[:2]
        return function, arguments
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy(), str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def _to_tensor(packed: tuple[Any, ...]) -> "torch.Tensor":
    import torch

    if len(packed) == 2:
        function, arguments = packed
        tensor: torch.Tensor = function(*arguments)
        return tensor
    array, dtype, shape = packed
    return torch.from_numpy(np.asarray(_Writable(array))).view(getattr(torch, dtype)).reshape(shape)


class _Writable:
    """The same memory as a read-only array, without the mark: torch has no read-only tensors, and warns."""

    def __init__(self, array: "np.ndarray[Any, Any]") -> None:
        self._array = array  # keeps the memory
        interface = array.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}
