"""Attackers that forge what they send: alone, or all alike, having seen what the others send."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from core.randomness import generator
from federated.attacks.attack import Attack


@dataclass(frozen=True)
class SignFlip(Attack):
    """Sends the update times -scale."""

    kind: Literal["sign_flip"] = "sign_flip"
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, got {self.scale}")

    def forge(self, update: Tensor, *key: int | str) -> Tensor:
        return -self.scale * update


@dataclass(frozen=True)
class Gaussian(Attack):
    """Sends Gaussian noise of standard deviation `std` in place of the update (arXiv 1703.02757, section 5)."""

    kind: Literal["gaussian"] = "gaussian"
    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.std > 0:
            raise ValueError(f"std must be above 0, got {self.std}")

    def forge(self, update: Tensor, *key: int | str) -> Tensor:
        return self.std * torch.randn(update.shape, generator=generator(*key, "gaussian"))


@dataclass(frozen=True)
class LittleIsEnough(Attack):
    """A Little Is Enough (arXiv 1902.06156, algorithm 1): the mean of the honest updates minus z of their standard
    deviations, number by number: so little that it hides among them, so alike that it decides.

    z: null takes the largest with which, by the normal distribution, as many honest clients lie further out as the
    attackers lack for a majority; at least 0, which is the mean: the attackers are then too few.

    Attackers without an honest client go by the mean and deviation of their own updates.
    """

    kind: Literal["alie"] = "alie"
    z: float | None = None

    is_colluding = True

    def forge_together(self, known: Tensor, honest: int, attackers: int) -> Tensor:
        std, mean = torch.std_mean(known, dim=0, correction=0)
        return mean - (largest_z(honest + attackers, attackers) if self.z is None else self.z) * std


def largest_z(clients: int, attackers: int) -> float:
    """The z of which a share (n - m - s) / (n - m) of a normal distribution is smaller: s = n // 2 + 1 - m honest
    clients of n must side with m attackers."""
    honest = clients - attackers
    share = (honest - (clients // 2 + 1 - attackers)) / honest if honest else 1.0
    return NormalDist().inv_cdf(min(max(share, 0.5), 0.999))  # of a majority of attackers the paper says nothing: z 3


@dataclass(frozen=True)
class InnerProduct(Attack):
    """Inner product manipulation (arXiv 1903.03936, section 4): the mean of the honest updates times -epsilon.

    A small epsilon hides from rules that look at distances; it takes a large one to turn a plain mean around.
    """

    kind: Literal["inner_product"] = "inner_product"
    epsilon: float = 0.1

    is_colluding = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {self.epsilon}")

    def forge_together(self, known: Tensor, honest: int, attackers: int) -> Tensor:
        return -self.epsilon * known.mean(dim=0)
