"""Voices: what several models, or one model with several dropout masks, say about the same rows, and their mean.

Members of an ensemble are voices (arXiv:1612.01474), and so are passes with dropout left on (MC dropout,
arXiv:1506.02142). They are taken in one at a time, so that a large vocabulary costs one tensor and not one per voice.
Shapes: B rows, ... nothing or T tokens, C classes (or the vocabulary), K values.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from core.errors import ConfigError
from core.models.layers import Dropout
from core.randomness import example_keys, seed_of


@dataclass(frozen=True)
class MonteCarlo:
    """Every model speaks `samples` times, each time with other dropout masks; 0 is once, without dropout.

    A mask is a function of `seed`, the number of the voice and the row's position, of nothing else.
    """

    samples: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 0 or self.samples == 1:
            raise ValueError(f"samples must be 0 (dropout off) or at least 2, got {self.samples}")
        if self.seed and not self.samples:
            raise ValueError(f"seed decides dropout masks and there are none, got {self.seed}; set samples too")


PLAIN = MonteCarlo()


def has_dropout(network: nn.Module) -> bool:
    """Whether passes of the network can differ."""
    return any(isinstance(module, Dropout) and module.p > 0 for module in network.modules())


def voices(network: nn.Module, inputs: Tensor, start: int, number: int, passes: MonteCarlo = PLAIN) -> Iterator[Tensor]:
    """The outputs [B, ..., C] of the `number`-th network, in evaluation mode, for each of its passes.

    The rows stand at `start` and after it in their data. Only dropout is turned on; batch norm keeps its statistics.
    Raises ConfigError if all passes would be the same.
    """
    assert not network.training, "batch norm would learn from what it is asked"
    if not passes.samples:
        yield network(inputs)
        return
    if not has_dropout(network):
        raise ConfigError("samples: the model has no dropout to vary; leave samples out, or train with model.dropout")
    positions = torch.arange(start, start + len(inputs), device=inputs.device)
    for sample in range(number * passes.samples, (number + 1) * passes.samples):
        yield network(inputs, example_keys(seed_of(passes.seed, "voices"), sample, positions))


# --- their mean ----------------------------------------------------------------------------------------------------


class Mean(Protocol):
    """The mean of the voices that were added; there must be one."""

    def add(self, outputs: Tensor) -> None:
        """Takes in one more voice."""

    @property
    def outputs(self) -> Tensor:
        """What they say together, as an objective and metrics take it. Of one voice exactly what it said."""

    @property
    def spread(self) -> Tensor:
        """What `core.ensemble.uncertainty` needs beside it: see the classes."""


def mean_of(target: str) -> Mean:
    """For outputs of classes and tokens the mean of probabilities, for real values the mean of values."""
    return MeanValue() if target == "real" else MeanProbability()


class MeanProbability:
    """Of logits [B, ..., C]. outputs: the log of the mean probability, normalized, without underflow.

    spread: the mean of the voices' own entropies [B, ...], in nats.
    """

    _first: Tensor
    _log_sum: Tensor
    _entropies: Tensor

    def __init__(self) -> None:
        self.count = 0

    def add(self, outputs: Tensor) -> None:
        self.count += 1
        if self.count == 1:
            self._first = outputs  # is taken in when it does not stay alone
            return
        if self.count == 2:
            self._log_sum = self._first.float().log_softmax(-1)
            self._entropies = entropy(self._log_sum)
        logprobs = outputs.float().log_softmax(-1)
        self._entropies += entropy(logprobs)
        torch.logaddexp(self._log_sum, logprobs, out=self._log_sum)

    @property
    def outputs(self) -> Tensor:
        return self._first if self.count == 1 else self._log_sum - math.log(self.count)

    @property
    def spread(self) -> Tensor:
        if self.count == 1:
            return entropy(self._first.float().log_softmax(-1))
        return self._entropies / self.count


class MeanValue:
    """Of values [B, K]. spread: their variance [B, K] over the voices, divided by the number of voices, float64."""

    _first: Tensor
    _mean: Tensor
    _squares: Tensor

    def __init__(self) -> None:
        self.count = 0

    def add(self, outputs: Tensor) -> None:
        values = outputs.double()
        self.count += 1
        if self.count == 1:
            self._first, self._mean, self._squares = outputs, values, torch.zeros_like(values)
            return
        # Welford (1962): no difference of large squares
        step = values - self._mean
        self._mean = self._mean + step / self.count
        self._squares = self._squares + step * (values - self._mean)

    @property
    def outputs(self) -> Tensor:
        return self._first if self.count == 1 else self._mean.float()

    @property
    def spread(self) -> Tensor:
        return self._squares / self.count


def entropy(logprobs: Tensor) -> Tensor:
    """Of distributions [..., C], given as normalized log-probabilities: [...] in nats. A probability of 0 adds 0."""
    # float32 has no exp(-200) but 0, and 0 times a bound is 0 where 0 times infinity is NaN
    entropies: Tensor = -torch.linalg.vecdot(logprobs.exp(), logprobs.clamp(min=-200.0))
    return entropies
