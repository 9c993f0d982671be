"""The plain loop: one member after the other through `core.train.fit`. This defines what is correct."""

from dataclasses import replace

from torch import Tensor

from core.errors import WorkerError
from core.learner import put_weights
from core.population.member import Member, Outcome
from core.runtime import LOCAL, Runtime
from core.storage.checkpoint import Restored, Snapshot
from core.train import fit


class KeepBest:
    """Keeps the best weights of a fit in memory, where there is no directory for checkpoints."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def save(self, snapshot: Snapshot, best: bool = False) -> None:
        """Takes a copy of the weights if they are the best so far."""
        if best:
            self.weights = {name: tensor.clone() for name, tensor in snapshot.tensors["model"].items()}

    def wait(self) -> None:
        """Nothing is under way."""

    def load_latest(self) -> Restored:
        """Nothing: such a fit starts at its beginning."""
        return Restored(None, ())


def fit_alone(member: Member, runtime: Runtime = LOCAL) -> Outcome:
    """Trains one member. A member that diverges has its error as outcome."""
    report = runtime.report
    own = replace(runtime, report=lambda record: report({"member": member.name, **record}))
    keeper = KeepBest() if member.recipe.train.keep == "best" else None
    try:
        result = fit(member.recipe, member.shard, member.weights, own, keeper)
    except WorkerError as error:
        report({"event": "member_failed", "member": member.name, "reason": str(error)})
        return Outcome(member.name, error=error)
    if keeper and keeper.weights:
        put_weights(result.task, keeper.weights)
    return Outcome(member.name, result)
