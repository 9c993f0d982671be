"""The section `privacy` of a recipe."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ExamplePrivacy:
    """The gradient of DP-SGD (arXiv:1607.00133, algorithm 1): each example's is clipped to the norm `clip`, Gaussian
    noise of standard deviation noise_multiplier * clip is added to their sum, and that is divided by the batch size.

    noise: `secure` draws from the operating system; `keyed` is a function of seed and step, for tests and for comparing
    runs: whoever knows the seed can take it away again.
    """

    clip: float = 1.0
    noise_multiplier: float = 1.0
    noise: Literal["secure", "keyed"] = "secure"

    def __post_init__(self) -> None:
        if not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be above 0 and finite, got {self.clip}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier must be 0 (no noise) or more and finite, got {self.noise_multiplier}")
