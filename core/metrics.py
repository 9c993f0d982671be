"""Metrics as states that add: sums in float64, one flat dict of tensors, merged across batches, ranks and clients by +.

States live on the device and nothing here waits for it before `compute`. Padding rows (weight 0) and tokens with target
-100 do not count; other weights count as scikit-learn's `sample_weight`. A metric that is not defined (the ROC AUC of
one class only) is left out of the result, it is never NaN.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from core.errors import ConfigError
from core.task import Batch

State = dict[str, Tensor]

_IGNORED = -100
_LARGEST = 1e150  # of a sum in a state from outside: its square is still finite
_ROUNDING = 1e-6  # relative; sums of the same numbers in another order
# What is measured for each kind of target, beside what its data may leave undefined
NAMES: dict[str, tuple[str, ...]] = {
    "class": (
        "loss", "accuracy", "balanced_accuracy", "precision_macro", "precision_micro", "recall_macro", "recall_micro",
        "f1_macro", "f1_micro", "roc_auc",
    ),
    "token": ("loss", "perplexity", "bits_per_byte", "token_accuracy"),
    "real": ("loss", "mae", "rmse", "r2"),
}  # fmt: skip
_HIGHER = {"accuracy", "balanced_accuracy", "roc_auc", "token_accuracy", "r2"}
_HIGHER |= {f"{name}_{mean}" for name in ("precision", "recall", "f1") for mean in ("macro", "micro")}
_LOWER = {"loss", "perplexity", "bits_per_byte", "mae", "rmse"}


def higher_is_better(name: str) -> bool:
    """Which end of a metric is the good one. ConfigError if there is no such metric."""
    if name not in _HIGHER | _LOWER:
        known = ", ".join(sorted(_HIGHER | _LOWER))
        raise ConfigError(f"train.metric: unknown metric '{name}'; choose one of {known}")
    return name in _HIGHER


class Metrics(ABC):
    """What is measured on held-out data, for one kind of target: a recipe for states, which themselves are plain sums.

    state = metrics.zero(device); metrics.add(state, ...) per batch; Metrics.merge(a, b); metrics.compute(state).
    """

    @staticmethod
    def of(
        target: str,
        outputs: int,
        classes: tuple[str, ...] = (),
        bytes_per_token: float | Tensor | None = None,
        smoothed: bool = False,
        unit: float = 1.0,
    ) -> "Metrics":
        """The metrics for targets "class", "real" or "token" with so many outputs.

        `bytes_per_token`, a mean or one number per token id [V], adds bits per byte. `smoothed` says that the losses
        contain label smoothing, so that perplexity must not be taken from them. `unit`: see `RealMetrics`.
        """
        if target == "class":
            return ClassMetrics(outputs, classes)
        if target == "real":
            return RealMetrics(outputs, unit)
        if target == "token":
            return TokenMetrics(outputs, bytes_per_token, smoothed)
        raise ConfigError(f"objective: there are no metrics for the target '{target}'")

    def zero(self, device: torch.device | str = "cpu") -> State:
        """The state of no data."""
        return {name: torch.zeros(s, dtype=torch.float64, device=device) for name, s in self.shapes().items()}

    @torch.no_grad()
    def add(self, state: State, outputs: Tensor, batch: Batch, losses: Tensor, weights: Tensor) -> None:
        """Adds one batch in place; `losses` and `weights` [B] as `Task.forward` gives them, not yet times `weight`."""
        examples = batch["weight"].double()
        # a padding row may hold anything, even NaN
        state["loss"] += torch.where(examples > 0, losses.double() * examples, 0.0).sum()
        state["weight"] += (weights.double() * examples).sum()
        self.count(state, outputs, batch["targets"], examples)

    @staticmethod
    def merge(a: State, b: State) -> State:
        """The state of both data together."""
        return {name: a[name] + b[name].to(a[name].device) for name in a}

    def compute(self, state: State) -> dict[str, float]:
        """The metrics by name. Empty if the state holds no data."""
        state = {name: tensor.cpu() for name, tensor in state.items()}
        if state["weight"] == 0:
            return {}
        return {"loss": (state["loss"] / state["weight"]).item(), **self.score(state)}

    def details(self, state: State) -> dict[str, Any]:
        """What does not fit in one number, JSON-able; {} where there is nothing."""
        return {}

    def fault(self, state: State) -> str | None:
        """Why no data gives this state of the right shapes, in a few words; None if some could. For states that come
        from outside: numbers that are finite, no count below 0, and sums that agree with each other.
        """
        for name, tensor in state.items():
            if not bool(torch.isfinite(tensor).all()):
                return f"{name} is not finite"
            if float(tensor.abs().max()) > _LARGEST:
                return f"{name} is above {_LARGEST:g}"
            if name not in self.signed and float(tensor.min()) < 0:
                return f"{name} is below 0: {float(tensor.min()):.6g}"
        for name, part, whole in self.agreements(state):
            if not bool(torch.isclose(part, whole.expand(part.shape), rtol=_ROUNDING, atol=_ROUNDING).all()):
                return name
        for name, value in self.compute(state).items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        return None

    signed: tuple[str, ...] = ()  # the sums that may be below 0

    @abstractmethod
    def agreements(self, state: State) -> list[tuple[str, Tensor, Tensor]]:
        """Pairs of tensors that are equal whatever the data, and what is wrong where they are not."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of a state; "loss" and "weight" are among them."""

    @abstractmethod
    def count(self, state: State, outputs: Tensor, targets: Tensor, examples: Tensor) -> None:
        """Adds what is not the loss; `examples` [B] are the example weights, float64."""

    @abstractmethod
    def score(self, state: State) -> dict[str, float]:
        """The metrics beside the loss, from a state on the CPU with some data."""


# --- classes -------------------------------------------------------------------------------------------------------


class ClassMetrics(Metrics):
    """Logits [B, C] against class indices [B]. Macro means go over the classes that occur or are predicted, balanced
    accuracy over those that occur, the ROC AUC (binary, else one against the rest) over those that can be ranked."""

    def __init__(self, outputs: int, classes: tuple[str, ...] = ()) -> None:
        self.num_classes = outputs
        self.classes = list(classes) or [str(i) for i in range(outputs)]
        self.ranked = 1 if outputs == 2 else outputs  # of two classes one says all
        self.bins = max(64, min(4096, 2**20 // outputs))  # the histograms stay below 16 MB

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """scores: weights of [not this class, this class] by class and bin of its log-odds."""
        confusion = (self.num_classes, self.num_classes)
        return {"loss": (), "weight": (), "confusion": confusion, "scores": (2, self.ranked, self.bins)}

    def count(self, state: State, outputs: Tensor, targets: Tensor, examples: Tensor) -> None:
        """Adds to confusion[true, predicted] and to the score histograms."""
        examples = examples * (targets >= 0)
        truth = targets.clamp(min=0)
        cells = truth * self.num_classes + outputs.argmax(dim=1)
        state["confusion"].view(-1).index_add_(0, cells, examples)
        classes = torch.arange(self.num_classes - self.ranked, self.num_classes, device=outputs.device)
        bins = self._bin(log_odds(outputs)[:, classes])  # [B, ranked]
        positive = (truth[:, None] == classes).long()
        cells = (positive * self.ranked + torch.arange(self.ranked, device=outputs.device)) * self.bins + bins
        state["scores"].view(-1).index_add_(0, cells.flatten(), examples.repeat_interleave(self.ranked))

    def agreements(self, state: State) -> list[tuple[str, Tensor, Tensor]]:
        """Every example is in one cell of the confusion, and for each ranked class in one bin of its scores."""
        negative, positive = state["scores"].sum(2)
        return [
            ("confusion does not sum to the weight", state["confusion"].sum(), state["weight"]),
            ("scores do not sum to the weight", negative + positive, state["weight"]),
            ("scores are not of the classes in confusion", positive, state["confusion"].sum(1)[-self.ranked :]),
        ]

    def in_blocks(self, state: State, size: int, draws: Generator) -> State:
        """The same shares, told in blocks of `size` examples: every cell is a multiple of it, and so is their sum.

        By systematic sampling, so that the mean of each cell over draws is its share of the sum. For examples that
        count once each.
        """
        total = float(state["weight"]) // size * size
        confusion = _in_blocks(state["confusion"].flatten(), total, size, draws).view_as(state["confusion"])
        support, scores = confusion.sum(1)[-self.ranked :], torch.zeros_like(state["scores"])
        for place in range(self.ranked):
            sums = (total - float(support[place]), float(support[place]))
            for sign, own in enumerate(sums):
                scores[sign, place] = _in_blocks(state["scores"][sign, place], own, size, draws)
        weight = torch.full_like(state["weight"], total)
        loss = state["loss"] * (weight / state["weight"].clamp(min=1))
        return {"loss": loss, "weight": weight, "confusion": confusion, "scores": scores}

    def _bin(self, odds: Tensor) -> Tensor:
        """Bins of log-odds, equally wide after x / (1 + |x|): fine near 0, and no score is too large for them."""
        odds = torch.nan_to_num(odds, nan=-1e30, posinf=1e30, neginf=-1e30)
        return ((odds / (1 + odds.abs()) + 1) * (self.bins / 2)).long().clamp(0, self.bins - 1)

    def score(self, state: State) -> dict[str, float]:
        """Accuracy, balanced accuracy, precision, recall, F1 and ROC AUC."""
        c = self._per_class(state["confusion"])
        occurs, shows = c["support"] > 0, (c["support"] + c["predicted"]) > 0
        accuracy = (state["confusion"].trace() / state["confusion"].sum()).item()
        values = {"accuracy": accuracy, "balanced_accuracy": c["recall"][occurs].mean().item()}
        for name in ("precision", "recall", "f1"):
            values[f"{name}_macro"] = c[name][shows].mean().item()
            values[f"{name}_micro"] = accuracy  # with one label per example they are all the same
        auc, _ = histogram_auc(state["scores"])
        if auc is not None:
            values["roc_auc"] = auc
        return values

    def details(self, state: State) -> dict[str, Any]:
        """The confusion matrix (rows: truth), the numbers by class, and how far the ROC AUC can be off."""
        state = {name: tensor.cpu() for name, tensor in state.items()}
        c = self._per_class(state["confusion"])
        by_class = {
            label: {name: c[name][i].item() for name in ("precision", "recall", "f1", "support")}
            for i, label in enumerate(self.classes)
        }
        _, bound = histogram_auc(state["scores"])
        confusion = state["confusion"].tolist()
        return {"classes": self.classes, "confusion": confusion, "by_class": by_class, "roc_auc_error": bound}

    @staticmethod
    def _per_class(confusion: Tensor) -> dict[str, Tensor]:
        """Each [C]; a ratio of nothing to nothing is 0, as in scikit-learn."""
        hits, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        return {
            "support": support,
            "predicted": predicted,
            "precision": _ratio(hits, predicted),
            "recall": _ratio(hits, support),
            "f1": _ratio(2 * hits, support + predicted),
        }


def log_odds(logits: Tensor) -> Tensor:
    """[B, C] -> log(p / (1 - p)) of each class, [B, C]: ranks as the probability does, without its rounding to 1."""
    logits = logits.double()
    if logits.shape[1] == 2:
        return logits - logits.flip(1)
    # log sum exp over the others, through the others themselves: exact also where one class has all the mass
    top2 = logits.topk(2, dim=1)
    is_top = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, top2.indices[:, :1], True)
    shifted = (logits - top2.values[:, :1]).exp()  # the largest is exactly 1
    rest = shifted.masked_fill(is_top, 0.0).sum(1, keepdim=True)
    others = torch.where(is_top, rest, 1 + rest - shifted)
    second = logits.masked_fill(is_top, -math.inf).logsumexp(1, keepdim=True)
    return logits - torch.where(is_top, second, top2.values[:, :1] + others.log())


def histogram_auc(scores: Tensor) -> tuple[float | None, float | None]:
    """(ROC AUC, bound on its error) from histograms [2 (negative, positive), classes, bins]; (None, None) if no class
    has both. Only pairs within one bin are undecided; they count one half, so the error is at most half their share."""
    negative, positive = scores
    usable = (negative.sum(1) > 0) & (positive.sum(1) > 0)
    if not usable.any():
        return None, None
    negative, positive = negative[usable], positive[usable]
    pairs = negative.sum(1) * positive.sum(1)
    below = negative.cumsum(1) - negative
    same = 0.5 * (positive * negative).sum(1)
    auc = ((positive * below).sum(1) + same) / pairs
    return auc.mean().item(), (same / pairs).mean().item()


def exact_auc(scores: Tensor, positive: Tensor, weights: Tensor | None = None) -> float | None:
    """ROC AUC without bins, from every score [N], label [N] (true or 1 is positive) and weight [N]; None if undefined.

    Needs all rows in one place, so it does not merge by adding; equal scores count one half.
    """
    w = torch.ones(len(scores), dtype=torch.float64) if weights is None else weights.double().cpu()
    _, rank = scores.double().cpu().unique(return_inverse=True)
    by_score = torch.zeros(2, 1, int(rank.max()) + 1 if len(rank) else 1, dtype=torch.float64)
    by_score.view(2, -1).index_put_((positive.cpu().long(), rank), w, accumulate=True)
    return histogram_auc(by_score)[0]


# --- tokens --------------------------------------------------------------------------------------------------------


class TokenMetrics(Metrics):
    """Logits [B, T, V] against tokens [B, T]: loss per scored token, perplexity, token accuracy, bits per byte."""

    def __init__(self, outputs: int, bytes_per_token: float | Tensor | None = None, smoothed: bool = False) -> None:
        self.smoothed = smoothed
        self.bytes: Tensor | None = None
        if bytes_per_token is not None:
            self.bytes = torch.as_tensor(bytes_per_token, dtype=torch.float64).expand(outputs)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All are single numbers; nll: the loss without label smoothing."""
        return dict.fromkeys(("loss", "weight", "nll", "correct", "tokens", "bytes"), ())

    def count(self, state: State, outputs: Tensor, targets: Tensor, examples: Tensor) -> None:
        """Adds over scored tokens."""
        scored = (targets != _IGNORED) * examples[:, None]
        state["tokens"] += scored.sum()
        state["correct"] += ((outputs.argmax(dim=-1) == targets) * scored).sum()
        if self.smoothed:
            flat = F.cross_entropy(outputs.flatten(0, 1).float(), targets.flatten(), reduction="none")
            state["nll"] += torch.where(scored > 0, flat.view(targets.shape) * scored, 0.0).sum()
        if self.bytes is not None:
            self.bytes = self.bytes.to(targets.device)
            state["bytes"] += (self.bytes[targets.clamp(min=0)] * scored).sum()

    def agreements(self, state: State) -> list[tuple[str, Tensor, Tensor]]:
        """Every scored token weighs 1, and is right or wrong; its bytes are those of some token."""
        tokens = state["tokens"]
        most = torch.zeros(()) if self.bytes is None else self.bytes.max().cpu()
        return [
            ("tokens are not the weight", tokens, state["weight"]),
            ("correct is above tokens", state["correct"], torch.minimum(state["correct"], tokens)),
            ("bytes are more than tokens have", state["bytes"], torch.minimum(state["bytes"], tokens * most)),
        ]

    def score(self, state: State) -> dict[str, float]:
        """Perplexity and bits per byte are of the unsmoothed loss."""
        nll = (state["nll"] if self.smoothed else state["loss"]) / state["weight"]
        accuracy = (state["correct"] / state["tokens"]).item()
        values = {"perplexity": nll.exp().item(), "token_accuracy": accuracy}
        if state["bytes"] > 0:
            values["bits_per_byte"] = (nll * state["weight"] / state["bytes"] / math.log(2)).item()
        return values


# --- real values ---------------------------------------------------------------------------------------------------


class RealMetrics(Metrics):
    """Values [B, K] against targets [B, K]: R2, MAE and RMSE, each the mean over the K targets.

    `unit` is what 1 stands for, such as the standard deviation that targets were divided by: MAE and RMSE are given in
    the user's units. R2 loses digits as mean^2 / variance grows: of float64's 16 about 6 at a ratio of 1e6.
    """

    def __init__(self, outputs: int, unit: float = 1.0) -> None:
        self.num_targets = outputs
        self.unit = unit

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By target: sums of the target, its square, the absolute and the squared error; examples: their weights."""
        sums = dict.fromkeys(("target", "square", "absolute_error", "squared_error"), (self.num_targets,))
        return {"loss": (), "weight": (), "examples": (), **sums}

    def count(self, state: State, outputs: Tensor, targets: Tensor, examples: Tensor) -> None:
        """Adds over rows."""
        row = examples[:, None]
        counts = row > 0
        values = torch.where(counts, targets.double(), 0.0)
        error = torch.where(counts, outputs.double() - targets.double(), 0.0)
        state["examples"] += examples.sum()
        state["target"] += (values * row).sum(0)
        state["square"] += (values.square() * row).sum(0)
        state["absolute_error"] += (error.abs() * row).sum(0)
        state["squared_error"] += (error.square() * row).sum(0)

    signed = ("target",)

    def agreements(self, state: State) -> list[tuple[str, Tensor, Tensor]]:
        """Every example weighs in all sums alike, and no square of a sum is above count * sum of squares."""
        count = state["examples"]
        pairs = [("target", "square"), ("absolute_error", "squared_error")]
        bounds = [
            (f"{first} does not go with {second}", state[first].abs(), (count * state[second]).sqrt())
            for first, second in pairs
        ]
        return [
            ("examples are not the weight", count, state["weight"]),
            *((name, first, torch.minimum(first, bound)) for name, first, bound in bounds),
        ]

    def score(self, state: State) -> dict[str, float]:
        """R2 is left out if a target does not vary."""
        n = state["examples"]
        spread = state["square"] - state["target"].square() / n
        mse = state["squared_error"] / n
        mae = state["absolute_error"] / n
        values = {"mae": self.unit * mae.mean().item(), "rmse": self.unit * mse.sqrt().mean().item()}
        if (spread > 1e-13 * state["square"]).all():  # below is rounding of a constant
            values["r2"] = (1 - state["squared_error"] / spread).mean().item()
        return values


def _in_blocks(cells: Tensor, total: float, size: int, draws: Generator) -> Tensor:
    """Cells [N] scaled to sum to `total`, a multiple of `size`, and each rounded to one so that the sums stay."""
    sums, shift = cells.cumsum(0), float(draws.random())
    if not total or not sums[-1] > 0:
        return torch.zeros_like(cells)
    blocks = (sums / sums[-1] * (total / size) + shift).floor()
    return blocks.diff(prepend=blocks.new_zeros(1)) * size


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Part / whole, 0 where the whole is 0."""
    return torch.where(whole > 0, part / whole.clamp(min=torch.finfo(whole.dtype).tiny), 0.0)
