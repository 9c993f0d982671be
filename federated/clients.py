"""The clients of a simulation: each sees its own share of one data set, as if it had loaded nothing else.

clients = PartitionedClients(data, partition, held_out=0.2, seed=0)
fit(recipe, clients.data(7, seed).shard(), ...)
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from core.data import Data, Preprocess, Spec
from core.data.augment import normal
from core.data.examples import Examples, shuffled
from core.data.preprocess import Number, TableFit
from core.errors import ConfigError, DataError
from core.randomness import numpy_generator, seed_of
from federated.partition import Partition

NOTHING = torch.empty(0, dtype=torch.long)


class Clients(Protocol):
    """Who takes part, and what each has. The client's number is its address for everything that is drawn for it."""

    def __len__(self) -> int: ...

    @property
    def spec(self) -> Spec:
        """What a model must know; the same for all."""
        ...

    @property
    def sizes(self) -> Tensor:
        """int64 [clients]: training examples."""
        ...

    @property
    def held_out_sizes(self) -> Tensor:
        """int64 [clients]: examples that the clients hold out."""
        ...

    @property
    def preprocess(self) -> Preprocess:
        """How files become inputs; the same for all."""
        ...

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the raw content of all."""
        ...

    def data(self, client: int, seed: int) -> Data:
        """A client's own `train` and `validation` (what it holds out), and an empty `test`.

        seed addresses the order of its examples, its dropout and its augmentation.
        """
        ...


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on inputs: `std` times one draw per example, addressed by `seed` and the example's address.

    columns [F]: 1 for the inputs of a table that are numbers, 0 for the others; None for images, all of which change.
    """

    std: float
    seed: int
    columns: Tensor | None

    def __call__(self, inputs: Tensor, addresses: Tensor) -> Tensor:
        """New inputs [B, ...] of the examples at `addresses` [B]."""
        draws = self.std * normal(addresses + self.seed, inputs.shape[1:])
        return inputs + (draws if self.columns is None else draws * self.columns)


@dataclass
class Subset:
    """Some examples of another split, as a split: `own` [N] holds their addresses there, which are theirs here, too.

    So `weight` is that of the whole split: it is looked up by address.
    """

    whole: Examples
    own: Tensor
    noise: Noise | None = None
    weight: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        self.weight = self.whole.weight

    @property
    def is_costly(self) -> bool:
        return self.whole.is_costly

    def __len__(self) -> int:
        return len(self.own)

    def addresses(self, seed: int, epoch: int | None) -> Tensor:
        return self.own if epoch is None else self.own[shuffled(len(self.own), seed, epoch)]

    def take(self, addresses: Tensor) -> tuple[Tensor, Tensor | None]:
        inputs, targets = self.whole.take(addresses)
        return inputs if self.noise is None else self.noise(inputs, addresses), targets


class PartitionedClients:
    """The clients of a partition of `data.splits["train"]`.

    Each holds out the share `held_out` of its examples, rounded but at least one, and never its last one: chosen at
    random by `seed`, which addresses the noise on its inputs, too. Raises ConfigError for a share outside [0, 1),
    DataError for a client without examples.
    """

    def __init__(self, data: Data, partition: Partition, held_out: float, seed: int) -> None:
        if not 0 <= held_out < 1:
            raise ConfigError(f"held_out: must be in [0, 1), got {held_out}")
        sizes = partition.sizes
        if not len(sizes) or int(sizes.min()) < 1:
            empty = int(sizes.argmin()) if len(sizes) else 0
            raise DataError(f"clients: client {empty} has no training example; partition the data otherwise")
        self._whole = data
        self._noise, self._noise_seed, self._columns = partition.noise, seed_of(seed, "inputs") >> 16, _numeric(data)
        wanted = (sizes * held_out).round().long().clamp(min=1) if held_out else torch.zeros_like(sizes)
        self.held_out_sizes = torch.minimum(wanted, sizes - 1)
        self.sizes = sizes - self.held_out_sizes
        # of a client's stretch of `_own`, those up to its `ends` train, the rest is held out
        self._own = data.splits["train"].addresses(data.seed, None)[_mixed(partition, seed)]
        starts, ends = partition.offsets[:-1], partition.offsets[1:]
        self._bounds = torch.stack([starts, starts + self.sizes, ends], dim=1)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def spec(self) -> Spec:
        """What a model must know."""
        return self._whole.spec

    @property
    def preprocess(self) -> Preprocess:
        """How files became inputs: fitted on all clients' training examples."""
        return self._whole.preprocess

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the raw content."""
        return self._whole.fingerprint

    def data(self, client: int, seed: int) -> Data:
        """A client's own splits; see `Clients`. It costs the same for any number of clients and examples."""
        start, middle, end = self._bounds[client].tolist()
        whole, noise = self._whole.splits["train"], self._noise_of(client)
        splits = {
            "train": Subset(whole, self._own[start:middle], noise),
            "validation": Subset(whole, self._own[middle:end], noise),
            "test": Subset(whole, NOTHING),
        }
        return Data(self._whole.preprocess, self._whole.fingerprint, splits, seed, self._whole.augmentation)

    def _noise_of(self, client: int) -> Noise | None:
        return None if self._noise is None else Noise(float(self._noise[client]), self._noise_seed, self._columns)


def _mixed(partition: Partition, seed: int) -> Tensor:
    """int64 [N]: the partition's order, each client's stretch of it shuffled."""
    draws = numpy_generator(seed, "held out").permutation(len(partition.order))
    owner = np.repeat(np.arange(len(partition)), partition.sizes.numpy())
    return partition.order[torch.from_numpy(draws[np.argsort(owner[draws], kind="stable")])]


def _numeric(data: Data) -> Tensor | None:
    """[F]: 1 where the input of a table is a number, 0 where it stands for a text; None for images and text."""
    fitted = data.preprocess.fitted
    if not isinstance(fitted, TableFit):
        return None
    flags: list[float] = []
    for feature in fitted.features:
        flags += [float(isinstance(feature, Number))] * feature.width
    return torch.tensor(flags)
