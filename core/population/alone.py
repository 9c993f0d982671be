"""The plain loop: one member after the other through `core.train.fit`. This defines what is correct."""

from dataclasses import replace

from torch import Tensor

from core.errors import WorkerError
from core.learner import Saver, put_weights
from core.population.member import Member, Outcome
from core.population.spacing import Spacing
from core.recipe import Training
from core.runtime import LOCAL, Runtime
from core.storage.checkpoint import Restored, Snapshot
from core.train import due, fit


class Keeper:
    """Keeps the best weights of a fit in memory, and beside what it goes on from in `checkpoints`, if it has any.

    `fit` saves at every best evaluation and at its end. What is kept of many small fits would take longer than they do,
    so that only what `checkpoint_every` asks for, some seconds apart, and where a fit is stopped, goes on to the disk.
    """

    def __init__(self, train: Training, runtime: Runtime, checkpoints: Saver | None) -> None:
        self.train, self.runtime, self.checkpoints = train, runtime, checkpoints
        self.best: dict[str, Tensor] = {}
        self.spacing = Spacing()

    def save(self, snapshot: Snapshot, best: bool = False) -> None:
        """Takes a copy of the weights if they are the best so far, and saves the snapshot with those if it is time."""
        if best and self.train.keep == "best":
            self.best = {name: tensor.clone() for name, tensor in snapshot.tensors["model"].items()}
        if self.checkpoints is None or snapshot.step >= self.train.steps:
            return
        is_due = due(snapshot.step, self.train.checkpoint_every, self.train.steps) and self.spacing.is_over()
        if is_due or self.runtime.should_stop():
            self.checkpoints.save(replace(snapshot, tensors={**snapshot.tensors, "best": self.best}))

    def wait(self) -> None:
        """Returns when all that was saved is kept."""
        if self.checkpoints:
            self.checkpoints.wait()

    def load_latest(self) -> Restored:
        """What was saved last; nothing without a place for it."""
        restored = self.checkpoints.load_latest() if self.checkpoints else Restored(None, ())
        if restored.snapshot:
            self.best = restored.snapshot.tensors["best"]
        return restored


def fit_alone(member: Member, runtime: Runtime = LOCAL, checkpoints: Saver | None = None) -> Outcome:
    """Trains one member, on from `checkpoints` if they hold any. A member that diverges has its error as outcome."""
    report, train = runtime.report, member.recipe.train
    own = replace(runtime, report=lambda record: report({"member": member.name, **record}))
    keeper = Keeper(train, runtime, checkpoints) if checkpoints or train.keep == "best" else None
    try:
        result = fit(member.recipe, member.shard, member.weights, own, keeper)
    except WorkerError as error:
        report({"event": "member_failed", "member": member.name, "reason": str(error)})
        return Outcome(member.name, error=error)
    if keeper and keeper.best:
        put_weights(result.task, keeper.best)
    return Outcome(member.name, result)
