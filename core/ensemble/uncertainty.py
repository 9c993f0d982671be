"""How sure a prediction is, and whether it may be: entropies, calibration and the variance between voices.

Like `core.metrics` all are sums in float64, states that merge by adding. Rows of weight 0 and tokens with a negative
target do not count, whatever they hold. N rows or tokens, C classes, K values; everything about entropy is in nats.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from core.ensemble.voices import Mean, entropy
from core.metrics import State

BINS = 15  # of equal width over the top probability (arXiv:1706.04599, section 5)


class Uncertainty(Protocol):
    """A recipe for states: state = u.zero(device), u.add(state, ...) per batch, `Metrics.merge`, u.compute(state)."""

    def zero(self, device: torch.device | str = "cpu") -> State:
        """The state of no data."""

    def add(self, state: State, mean: Mean, targets: Tensor, examples: Tensor) -> None:
        """Adds one batch in place: what the voices said, targets [B, ...] and the example weights [B]."""

    def compute(self, state: State) -> dict[str, Any]:
        """The numbers by name, JSON-able. Empty if the state holds no data."""


def uncertainty_of(target: str, voices: int, unit: float = 1.0) -> Uncertainty:
    """For classes and tokens `OfProbabilities`, for real values `OfValues`, whose 1 stands for `unit`.

    `voices`: the most that a row has. What lies between voices is left out where there is only one.
    """
    return OfValues(voices, unit) if target == "real" else OfProbabilities(voices)


class OfProbabilities:
    """Mean probabilities p against classes or tokens.

    predictive_entropy, H(p), is expected_entropy, the voices' own, plus mutual_information, what they disagree about
    (arXiv:1112.5745, equation 2). negative_log_likelihood: the mean of -log p[target]. brier_score: the mean squared
    distance of p to the one-hot target, so between 0 and 2. expected_calibration_error: the mean distance of accuracy
    and confidence, max p, over the bins (low, high] of `reliability` (arXiv:1706.04599, equation 3).
    """

    def __init__(self, voices: int) -> None:
        self.voices = voices

    def zero(self, device: torch.device | str = "cpu") -> State:
        sums = dict.fromkeys(("weight", "entropy", "expected_entropy", "nll", "brier"), ())
        bins = dict.fromkeys(("bin_weight", "bin_confidence", "bin_correct"), (BINS,))
        return {name: torch.zeros(s, dtype=torch.float64, device=device) for name, s in {**sums, **bins}.items()}

    @torch.no_grad()
    def add(self, state: State, mean: Mean, targets: Tensor, examples: Tensor) -> None:
        logprobs = mean.outputs.float().log_softmax(-1)
        weights = (targets >= 0) * examples.double().view(-1, *[1] * (targets.dim() - 1))
        truth = targets.clamp(min=0)

        def add(name: str, values: Tensor) -> None:
            # a row that does not count may hold anything, even NaN
            state[name] += torch.where(weights > 0, values.double() * weights, 0.0).sum()

        probabilities = logprobs.exp()
        of_truth = logprobs.gather(-1, truth[..., None])[..., 0]
        add("weight", torch.ones_like(weights))
        add("entropy", entropy(logprobs))
        if self.voices > 1:
            add("expected_entropy", mean.spread)
        add("nll", -of_truth)
        add("brier", probabilities.square().sum(-1) - 2 * of_truth.exp() + 1)
        confidence, choice = (found.double() for found in probabilities.max(-1))
        bins = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1).flatten()
        for name, values in (("weight", 1.0), ("confidence", confidence), ("correct", choice == truth)):
            counted = torch.where(weights > 0, values * weights, 0.0)
            state[f"bin_{name}"].index_add_(0, bins, counted.flatten())

    def compute(self, state: State) -> dict[str, Any]:
        state = {name: tensor.cpu() for name, tensor in state.items()}
        total = state["weight"].item()
        if total == 0:
            return {}
        sums = {name: state[name].item() / total for name in ("entropy", "expected_entropy", "nll", "brier")}
        gaps = (state["bin_correct"] - state["bin_confidence"]).abs().sum().item()
        found = {
            "expected_calibration_error": gaps / total,
            "negative_log_likelihood": sums["nll"],
            "brier_score": sums["brier"],
            "predictive_entropy": sums["entropy"],
        }
        if self.voices > 1:
            found["expected_entropy"] = sums["expected_entropy"]
            # not negative (Jensen), but for rounding
            found["mutual_information"] = max(0.0, sums["entropy"] - sums["expected_entropy"])
        return {**found, "reliability": _reliability(state)}


def _reliability(state: State) -> list[dict[str, float | None]]:
    """The bins of the reliability diagram; confidence and accuracy of an empty one are None."""
    sums = (state[f"bin_{name}"].tolist() for name in ("weight", "confidence", "correct"))
    return [
        {
            "low": i / BINS,
            "high": (i + 1) / BINS,
            "count": count,
            "confidence": confidence / count if count else None,
            "accuracy": correct / count if count else None,
        }
        for i, (count, confidence, correct) in enumerate(zip(*sums, strict=True))
    ]


class OfValues:
    """Real values. std: the standard deviation between voices, root mean square over rows and values, times `unit`."""

    def __init__(self, voices: int, unit: float = 1.0) -> None:
        self.voices, self.unit = voices, unit

    def zero(self, device: torch.device | str = "cpu") -> State:
        return {name: torch.zeros((), dtype=torch.float64, device=device) for name in ("weight", "variance")}

    @torch.no_grad()
    def add(self, state: State, mean: Mean, targets: Tensor, examples: Tensor) -> None:
        weights = examples.double()
        state["weight"] += weights.sum()
        state["variance"] += torch.where(weights > 0, mean.spread.double().mean(1) * weights, 0.0).sum()

    def compute(self, state: State) -> dict[str, Any]:
        if state["weight"] == 0 or self.voices == 1:
            return {}
        return {"std": self.unit * (state["variance"] / state["weight"]).sqrt().item()}
