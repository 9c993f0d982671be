"""Splits: rows that can be taken by address, and `Data`, which holds them all.

An address is a row number, or for the windows of a training text the position of its first token.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.augment import Augmentation
from core.data.preprocess import Preprocess
from core.data.spec import Spec
from core.randomness import generator, seed_of

if TYPE_CHECKING:
    from core.data.shard import Shard

IGNORED = -100  # a target that is not scored, as in torch's cross_entropy


class Examples(Protocol):
    """One split. `targets` and `weight` are None where the files hold none."""

    weight: Tensor | None

    @property
    def is_costly(self) -> bool:
        """Whether taking rows is slow enough to be done ahead, on another thread."""
        ...

    def __len__(self) -> int: ...

    def addresses(self, seed: int, epoch: int | None) -> Tensor:
        """[N] int64: every example once, shuffled for an epoch, or in fixed order for None."""
        ...

    def take(self, addresses: Tensor) -> tuple[Tensor, Tensor | None]:
        """The inputs [B, ...] and targets [B, ...] of the rows at `addresses` [B]."""
        ...


def shuffled(count: int, seed: int, epoch: int | None) -> Tensor:
    """[count]: a permutation addressed by seed and epoch."""
    return torch.arange(count) if epoch is None else torch.randperm(count, generator=generator(seed, "shuffle", epoch))


@dataclass
class Stacked:
    """Ready inputs [N, ...] in memory."""

    inputs: Tensor
    targets: Tensor | None
    weight: Tensor | None = None
    is_costly = False

    def __len__(self) -> int:
        return len(self.inputs)

    def addresses(self, seed: int, epoch: int | None) -> Tensor:
        return shuffled(len(self), seed, epoch)

    def take(self, addresses: Tensor) -> tuple[Tensor, Tensor | None]:
        targets = None if self.targets is None else self.targets.index_select(0, addresses)
        return self.inputs.index_select(0, addresses), targets


@dataclass
class Pixels:
    """Raw images [N, C, H, W] in memory; normalized with mean and std [C, 1, 1] when they are taken."""

    images: Tensor
    targets: Tensor | None
    mean: Tensor
    std: Tensor
    weight: Tensor | None = None
    is_costly = True

    def __len__(self) -> int:
        return len(self.images)

    def addresses(self, seed: int, epoch: int | None) -> Tensor:
        return shuffled(len(self), seed, epoch)

    def take(self, addresses: Tensor) -> tuple[Tensor, Tensor | None]:
        targets = None if self.targets is None else self.targets.index_select(0, addresses)
        return self.images.index_select(0, addresses).float().sub_(self.mean).div_(self.std), targets


@dataclass
class Decoded:
    """Images that stay in their files: `decode` gives the raw pixels [C, H, W] of one row."""

    count: int
    decode: Callable[[int], NDArray[Any]]
    targets: Tensor | None
    mean: Tensor
    std: Tensor
    weight: Tensor | None = None
    is_costly = True

    def __len__(self) -> int:
        return self.count

    def addresses(self, seed: int, epoch: int | None) -> Tensor:
        return shuffled(len(self), seed, epoch)

    def take(self, addresses: Tensor) -> tuple[Tensor, Tensor | None]:
        targets = None if self.targets is None else self.targets.index_select(0, addresses)
        images = torch.from_numpy(decode_all(self.decode, addresses.tolist()))
        return images.float().sub_(self.mean).div_(self.std), targets


def decode_all(decode: Callable[[int], NDArray[Any]], rows: list[int]) -> NDArray[Any]:
    """[len(rows), C, H, W], decoded on several threads: image libraries release the GIL."""
    with ThreadPoolExecutor(4) as pool:
        return np.stack(list(pool.map(decode, rows)))


class Windows:
    """The training text [N] as N // T windows of T tokens that do not overlap; where they begin moves with each epoch.

    The text is a ring, so each epoch predicts every token once (but the up to T - 1 that fill no window).
    """

    weight: Tensor | None = None
    is_costly = False

    def __init__(self, tokens: NDArray[np.int32], context: int) -> None:
        ring = torch.from_numpy(np.concatenate([tokens, tokens[: context + 1]]))
        self.tokens = ring.long() if len(ring) < 4_000_000 else ring  # int64 saves a conversion per step
        self.context, self.count = context, len(tokens) // context
        self._windows = self.tokens.unfold(0, context, 1)

    def __len__(self) -> int:
        return self.count

    def addresses(self, seed: int, epoch: int | None) -> Tensor:
        shift = 0 if epoch is None else seed_of(seed, "offset", epoch) % self.context
        return shuffled(self.count, seed, epoch) * self.context + shift

    def take(self, addresses: Tensor) -> tuple[Tensor, Tensor | None]:
        inputs, targets = self._windows.index_select(0, addresses), self._windows.index_select(0, addresses + 1)
        return inputs.long(), targets.long()


def fixed_windows(tokens: NDArray[np.int32], context: int) -> Stacked:
    """A held-out text in order: every token but the first is predicted once; the last window's rest is not scored."""
    scored = max(len(tokens) - 1, 0)
    count = -(-scored // context)
    inputs, targets = torch.zeros(count * context, dtype=torch.long), torch.full((count * context,), IGNORED)
    whole = torch.from_numpy(tokens).long()
    inputs[:scored], targets[:scored] = whole[:-1], whole[1:]
    return Stacked(inputs.view(count, context), targets.view(count, context))


@dataclass(frozen=True)
class Names:
    """What names the rows of a source: what the names are, such as `file`, and one for each row."""

    what: str
    values: Sequence[str]


@dataclass(frozen=True)
class Data:
    """What `load` returns: the splits, how they were prepared, and the SHA-256 of the raw content.

    rows: for each split the source's row (of a folder, the image in order of path) of each example, counted from 0;
    None for text. notes: what the user must know of how the source was read, one sentence each. names: what names the
    source's rows, where anything does.
    """

    preprocess: Preprocess
    fingerprint: str
    splits: Mapping[str, Examples]
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    rows: Mapping[str, Tensor] | None = None
    notes: tuple[str, ...] = ()
    names: Names | None = None

    @property
    def spec(self) -> Spec:
        """What a model must know."""
        return self.preprocess.spec

    @property
    def sizes(self) -> dict[str, int]:
        """Examples per split; of a text, windows."""
        return {name: len(examples) for name, examples in self.splits.items()}

    @property
    def summary(self) -> str:
        """What was read, in one line: `2,400/300/300 rows, 3 columns -> 6 inputs, target bought (no, yes)`."""
        return f"{'/'.join(f'{size:,}' for size in self.sizes.values())} {self.preprocess.summary}"

    @property
    def bytes_per_token(self) -> Tensor | None:
        """[V] float64: the bytes of text that each token stands for; None for other data than text."""
        return self.preprocess.tokenizer.token_bytes() if self.spec.kind == "text" else None

    @property
    def unit(self) -> float:
        """What 1 in real targets stands for in the target column's units; 1 where they were not normalized."""
        return float(getattr(self.preprocess.fitted, "target_std", 1.0))

    def shard(self, rank: int = 0, world: int = 1) -> "Shard":
        """The share of one of `world` ranks."""
        from core.data.shard import Shard

        return Shard(self, rank, world)
