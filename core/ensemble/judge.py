"""How good models are together: metrics of their mean prediction, of each alone, and how sure they are.

judged = judge(panels_of(artifact.load_all(directory)))
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.data import Data
from core.ensemble.panel import Panel
from core.ensemble.uncertainty import Uncertainty, uncertainty_of
from core.ensemble.voices import PLAIN, Mean, MonteCarlo, mean_of
from core.errors import DataError
from core.metrics import Metrics, State
from core.storage.artifact import Model
from core.task import Batch
from core.train import metrics_of

CPU = torch.device("cpu")
Hearer = Callable[[Panel, Mean, Tensor], None]


def nobody(panel: Panel, mean: Mean, targets: Tensor) -> None:
    """Hears nothing."""


@dataclass(frozen=True)
class Judgement:
    """metrics and details: of the mean prediction. uncertainty: its numbers, see `core.ensemble.uncertainty`.

    members: the metrics of each model alone, by the name of its directory; empty if there is only one. voices: how many
    speak about a row, at most.
    """

    metrics: dict[str, float]
    details: dict[str, Any]
    uncertainty: dict[str, Any]
    members: dict[str, dict[str, float]]
    examples: int
    voices: int


def judge(
    panels: Sequence[Panel],
    passes: MonteCarlo = PLAIN,
    device: torch.device = CPU,
    heard: Hearer = nobody,
) -> Judgement:
    """The sums of all panels added up: of folds this is the score over all rows, each by models that never saw it.

    With `passes` each model is the mean of its own. `heard` gets what a panel says about each of its batches, in order,
    and the targets as the reference has them. Raises DataError if the data holds no targets.
    """
    first = panels[0].models[0]
    voices = max(len(panel.models) for panel in panels) * max(1, passes.samples)
    uncertainty = uncertainty_of(first.spec.target, voices, panels[0].unit)
    count = sum(len(panel.models) for panel in panels)
    tallies = [_judge(panel.to(device), uncertainty, passes, count > 1, partial(heard, panel)) for panel in panels]
    together = tallies[0].together
    state, doubt = together.state, tallies[0].doubt
    for tally in tallies[1:]:
        state, doubt = Metrics.merge(state, tally.together.state), Metrics.merge(doubt, tally.doubt)
    alone = {name: score.compute() for tally in tallies for name, score in tally.alone.items()}
    assert count == 1 or len(alone) == count, "members of one ensemble have names of their own"
    return Judgement(
        metrics=together.metrics.compute(state),
        details=together.metrics.details(state),
        uncertainty=uncertainty.compute(doubt),
        members=alone,
        examples=sum(panel.examples for panel in panels),
        voices=voices,
    )


class _Score:
    """Metrics with their state, as one model's recipe and data measure them."""

    def __init__(self, model: Model, data: Data, device: torch.device) -> None:
        self.objective, self.metrics = model.recipe.goal, metrics_of(model.recipe, data.shard())
        self.state = self.metrics.zero(device)

    def add(self, outputs: Tensor, batch: Batch) -> None:
        losses, weights = self.objective.losses(outputs, batch), self.objective.weights(batch)
        self.metrics.add(self.state, outputs, batch, losses, weights)

    def compute(self) -> dict[str, float]:
        return self.metrics.compute(self.state)


@dataclass(frozen=True)
class _Tally:
    """together: of the mean; doubt: the uncertainty's state; alone: of each model by name, if there are several."""

    together: _Score
    doubt: State
    alone: dict[str, _Score]


@torch.inference_mode()
def _judge(
    panel: Panel, uncertainty: Uncertainty, passes: MonteCarlo, several: bool, heard: Callable[[Mean, Tensor], None]
) -> _Tally:
    device = next(panel.models[0].task.parameters()).device
    pairs, target = list(zip(panel.models, panel.data, strict=True)), panel.models[0].spec.target
    together, doubt = _Score(*pairs[0], device), uncertainty.zero(device)
    alone = [_Score(*pair, device) for pair in pairs] if several else []
    for start, batches in panel.batches(device):
        if "targets" not in batches[0]:
            raise DataError(f"{panel.source}: holds no targets to compare with; `hanse predict` needs none")
        mean = mean_of(target)
        for i, batch in enumerate(batches):
            own = mean_of(target)
            for outputs in panel.speak(i, batch["inputs"], start, passes):
                mean.add(panel.in_common(i, outputs))
                own.add(outputs)
            if several:
                alone[i].add(own.outputs, batch)
        batch = {**batches[0], "targets": panel.in_common(0, batches[0]["targets"])}
        together.add(mean.outputs, batch)
        uncertainty.add(doubt, mean, batch["targets"], batch["weight"])
        heard(mean, batch["targets"])
    names = [model.directory.name for model in panel.models]
    return _Tally(together, doubt, dict(zip(names, alone, strict=True)) if several else {})
