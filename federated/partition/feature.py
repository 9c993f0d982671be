"""Clients whose examples are alike, but seen through ever noisier sensors (arXiv 2102.02079)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.data import Data
from core.data.preprocess import Number, TableFit
from core.data.split import Indices
from core.errors import ConfigError
from federated.partition.iid import dealt_evenly
from federated.partition.partition import check_counts


@dataclass(frozen=True)
class Feature:
    """Examples at random; client i adds Gaussian noise of standard deviation noise * (i + 1) / clients to its inputs.

    It is added to inputs as a model gets them, normalized ones have deviation 1; of a table to columns of numbers
    only. An example has the same noise in every epoch. (The paper's noise is a variance, drawn anew each time.)
    """

    kind: Literal["feature"] = "feature"
    noise: float = 0.5
    min_size: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.noise < math.inf:
            raise ValueError(f"noise must be above 0 and finite, got {self.noise}")
        check_counts(min_size=self.min_size)

    def owners(self, data: Data, clients: int, seed: int) -> Indices:
        fitted = data.preprocess.fitted
        has_numbers = isinstance(fitted, TableFit) and any(isinstance(f, Number) for f in fitted.features)
        if data.spec.kind != "image" and not has_numbers:
            raise ConfigError(
                "partition.kind: feature adds noise to images and to numbers of a table, here are neither; use iid, "
                "quantity or column"
            )
        return dealt_evenly(len(data.splits["train"]), clients, seed)

    def levels(self, clients: int) -> Tensor:
        """float32 [clients]: each client's standard deviation."""
        return self.noise * torch.arange(1, clients + 1) / clients
