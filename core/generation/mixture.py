"""Several language models that write one text: at each step the mean of their next-token probabilities."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from core.ensemble.voices import MeanProbability


class Mixture(nn.Module):
    """A `LanguageModel` made of several with one vocabulary; its context is the shortest of theirs."""

    def __init__(self, networks: Sequence[Any]) -> None:
        super().__init__()
        assert len({network.vocabulary for network in networks}) == 1, "tokens would mean different things"
        self.networks = nn.ModuleList(networks)
        self.vocabulary: int = networks[0].vocabulary
        limits = [network.context for network in networks if network.context is not None]
        self.context: int | None = min(limits, default=None)

    def start(self, tokens: Tensor, padding: Tensor, slots: int) -> tuple[Tensor, "States"]:
        """Reads prompts [B, T], left-padded by `padding` [B] -> log-probabilities [B, V] of the next token, states."""
        mean, states = MeanProbability(), []
        for network in self.networks:
            logits, state = network.start(tokens, padding, slots)  # type: ignore[operator]
            mean.add(logits)
            states.append(state)
        return mean.outputs, States(states)

    def step(self, tokens: Tensor, states: "States") -> Tensor:
        """One more token [B] for each row -> log-probabilities [B, V]."""
        mean = MeanProbability()
        for network, state in zip(self.networks, states.each, strict=True):
            mean.add(network.step(tokens, state))  # type: ignore[operator]
        return mean.outputs


class States:
    """What each of the networks remembers."""

    def __init__(self, each: Sequence[Any]) -> None:
        self.each = each

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders the rows of the batch."""
        for state in self.each:
            state.select(rows)
