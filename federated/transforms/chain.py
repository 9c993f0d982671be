"""Transforms one after the other: client halves in the order of the list, server halves in the reverse order."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from core.errors import ConfigError
from core.population.frame import Frame
from federated.exchange import Reply, Vectors
from federated.inspection import Shapes, shapes
from federated.transforms import TransformConfig
from federated.transforms.clipping import Clipping

Transforms = Sequence[TransformConfig]


def require(transforms: Transforms) -> None:
    """Raises ConfigError `transforms.I: ...` for an order that makes no sense: a kind twice, a stage that falls."""
    for i, later in enumerate(transforms):
        for j, earlier in enumerate(transforms[:i]):
            if earlier.kind == later.kind:
                raise ConfigError(f"transforms.{i}: {later.kind} is already transforms.{j}; keep one of them")
            if earlier.stage > later.stage:
                raise ConfigError(f"transforms.{i}: {later.kind} must come before {earlier.kind}; swap them")
            if isinstance(earlier, Clipping) and earlier.above == "refuse" and later.stage > 0:
                raise ConfigError(
                    f"transforms.{j}: {later.kind} changes norms after the clipping, so the server would refuse honest "
                    f"clients; set transforms.{j}.above=scale"
                )


def encode(transforms: Transforms, reply: Reply, mine: Vectors, frame: Frame, *key: Any) -> tuple[Reply, Vectors]:
    """The reply as it is sent, and what the client keeps of its transforms, by names such as `1.update`.

    `mine` may hold other vectors too; they are neither read nor given back. `key` addresses all random draws.
    """
    kept: Vectors = {}
    for i, transform in enumerate(transforms):
        prefix = f"{i}."
        own = {name.removeprefix(prefix): vector for name, vector in mine.items() if name.startswith(prefix)}
        reply, own = transform.client(reply, own, frame, *key, transform.kind)
        kept |= {prefix + name: vector for name, vector in own.items()}
    return reply, kept


def decode(transforms: Transforms, reply: Reply, frame: Frame) -> Reply:
    """The reply as the strategy made it, but for what was lost. Raises ValueError, a few words, if it cannot be one."""
    for transform in reversed(transforms):
        reply = transform.server(reply, frame)
    return reply


def sent(transforms: Transforms, payload: Vectors, frame: Frame) -> Shapes:
    """Shapes and types of what is sent in the place of a payload, whose numbers do not matter."""
    return shapes(_sample(transforms, payload, frame).payload)


def bytes_up(transforms: Transforms, frame: Frame, names: Iterable[str], numbers: int = 0) -> int:
    """The size of a reply with these vectors [D] and so many single numbers, without the names around them."""
    zeros = torch.zeros(frame.size)
    payload = dict.fromkeys(names, zeros) | {f"number {i}": zeros.new_zeros(()) for i in range(numbers)}
    return _sample(transforms, payload, frame).size_bytes


def _sample(transforms: Transforms, payload: Vectors, frame: Frame) -> Reply:
    """Sizes do not depend on the numbers: any reply of this form shows them."""
    return encode(transforms, Reply(0, 1.0, payload), {}, frame, "sample")[0]
