"""What a server looks at before it lets a reply count: its form and its numbers, and whether it was asked for.

A reply that fails is left out and its client named; the round goes on with the others.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from federated.exchange import UPDATE, Reply
from federated.norm import l2_norm

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]  # by name
LARGEST_NORM = 1e19  # its square still fits float32, and with that the second moments of an optimizer
LARGEST_WEIGHT = 2.0**53  # beyond it float64 cannot count examples
ROUNDING = 1e-6  # relative; two machines may sum a norm in another order


@dataclass(frozen=True)
class Expected:
    """The form of a reply. max_norm: of the update, as an L2 norm; max_weight: None leaves both to what floats bear."""

    vectors: Shapes
    max_norm: float | None = None
    max_weight: float | None = None


def shapes(payload: Mapping[str, Tensor]) -> Shapes:
    """Shapes and types of tensors by name."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in payload.items()}


def fault(reply: Reply, expected: Expected) -> str | None:
    """What is wrong with a reply, in a few words; None if nothing is. One pass over each vector, and no exception."""
    text = _weight_fault(reply.weight, expected.max_weight) or names_fault(reply.payload, expected.vectors)
    if text:
        return text
    for name, (shape, dtype) in expected.vectors.items():
        largest = expected.max_norm if name == UPDATE else None
        text = _form_fault(name, reply.payload[name], shape, dtype) or _size_fault(name, reply.payload[name], largest)
        if text:
            return text
    return None


def count_fault(count: object) -> str | None:
    """What is wrong with a number of examples, in a few words."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= LARGEST_WEIGHT:
        return f"says that it has {short(count)} examples"
    return None


def names_fault(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first name that is missing or too much; the order of names does not matter."""
    for name in wanted:
        if name not in found:
            return f"{name} is missing"
    for name in found:
        if name not in wanted:
            return f"{short(name)} is not expected"
    return None


def short(value: object) -> str:
    """A value from outside in few printable characters: it may be shown on a terminal."""
    if isinstance(value, str):
        return ascii(value) if len(value) <= 40 else f"{value[:40]!a}..."
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print what is much longer
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(short, value[:8]))}{', ...' if len(value) > 8 else ''}]"
    return repr(value) if isinstance(value, int | float) else type(value).__name__


def form(shape: Iterable[int], dtype: object) -> str:
    """`float32 [7850]`."""
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _weight_fault(weight: object, largest: float | None) -> str | None:
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        return f"weight {short(weight)} is not a number"
    if not weight > 0:
        return f"weight {short(weight)} is not above 0"
    largest = LARGEST_WEIGHT if largest is None else largest
    return f"weight {short(weight)} is above {largest:g}" if weight > largest else None


def _form_fault(name: str, tensor: object, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"{name} is of type {type(tensor).__name__}, expected a tensor"
    if tensor.dtype != dtype or tensor.layout != torch.strided or tensor.is_meta:
        found = tensor.dtype if tensor.dtype != dtype else "not dense"
        return f"{name} is {str(found).removeprefix('torch.')}, expected {str(dtype).removeprefix('torch.')}"
    if tuple(tensor.shape) != shape:
        return f"{name} has shape {short(list(tensor.shape))}, expected {list(shape)}"
    return None


def _size_fault(name: str, tensor: Tensor, largest: float | None) -> str | None:
    """The norm is finite if and only if all numbers are, however large."""
    if not tensor.is_floating_point():
        return None
    length = l2_norm(tensor)
    if not math.isfinite(length) and (count := int((~tensor.isfinite()).sum())):
        return f"{name} is not finite at {count} of {tensor.numel()}"
    largest = LARGEST_NORM if largest is None else largest
    return f"{name} has norm {length:.6g}, above {largest:g}" if length > largest * (1 + ROUNDING) else None


class Ledger:
    """Who was asked and has not replied yet: every reply counts once, and only in the round that it was made for."""

    def __init__(self, run_id: int, asked: Iterable[tuple[int, int]]) -> None:
        """asked: a client and the round of its order for every reply that is awaited; a pair may come twice."""
        self._run_id = run_id
        self._open = Counter(asked)
        self._rounds: dict[int, list[int]] = {}
        for client, number in sorted(self._open):
            self._rounds.setdefault(client, []).append(number)

    @classmethod
    def of_round(cls, run_id: int, round: int, cohort: Iterable[int]) -> "Ledger":
        """The ledger of a round that waits for all of its clients."""
        return cls(run_id, [(client, round) for client in cohort])

    def accept(self, client: int, round: int, run_id: int) -> str | None:
        """Takes note of a reply, or says in a few words why it must not count."""
        if run_id != self._run_id:
            return f"reply is of run {run_id}, this is run {self._run_id}"
        if client not in self._rounds:
            return f"client {client} was not asked"
        if (client, round) not in self._open:
            asked = " or ".join(map(str, self._rounds[client]))
            return f"reply is of round {round}, client {client} was asked in round {asked}"
        if not self._open[client, round]:
            return f"client {client} has already replied to round {round}"
        self._open[client, round] -= 1
        return None
