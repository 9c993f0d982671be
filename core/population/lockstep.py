"""`fit` for all members of a population at once, step by step together. What it does for each is what `core.train.fit`
does: the same batches, evaluations, early stopping and errors, and the same numbers but for rounding.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from core import health
from core.errors import WorkerError
from core.learner import Learner, Progress, Saver, put_weights
from core.meter import memory_bytes
from core.population.feed import Feed
from core.population.member import Finished, Member, Outcome, ignore
from core.population.population import Moved, Population
from core.population.spacing import Spacing
from core.recipe import Training
from core.runtime import LOCAL, Record, Runtime
from core.storage.checkpoint import Snapshot
from core.task import Batch
from core.train import Ended, Result, due, how_ended, judge, require_batches, require_validation, validate


def fit_together(
    members: Sequence[Member],
    runtime: Runtime = LOCAL,
    finished: Finished = ignore,
    begun: "Lockstep | None" = None,
    checkpoints: Saver | None = None,
) -> list[Outcome]:
    """Trains members that share a signature as one population. Outcomes come in the members' order, to `finished` as
    they are there. `begun`: these members, restored from a checkpoint.

    Into `checkpoints` goes the beginning, as members may leave before the next one is due, then what the recipe asks
    for, some seconds apart, and where the run is stopped. Raises ConfigError if the members cannot be stacked,
    RuntimeError if an operation of the model cannot be.
    """
    lockstep = begun or Lockstep(members, runtime)
    lockstep.runtime, lockstep.finished = runtime, finished
    if checkpoints and not begun:
        checkpoints.save(lockstep.capture())
    while len(lockstep.population):
        lockstep.advance()
        stops = runtime.should_stop()
        if checkpoints and lockstep.at and (stops or lockstep.is_due()):
            checkpoints.save(lockstep.capture())
        if stops:
            lockstep.end(dict.fromkeys(lockstep.at, "stopped"))
    return [lockstep.outcomes[member.name] for member in members]


class Lockstep:
    """A population, its batches, and how far each member is. Members that end leave it, and the others go on."""

    def __init__(self, members: Sequence[Member], runtime: Runtime, finished: Finished = ignore) -> None:
        self.runtime, self.finished, self.began = runtime, finished, time.perf_counter()
        self.judges = {m.name: require_validation(m.shard, m.recipe.train) for m in members}
        for member in members:
            require_batches(member.recipe, member.shard.spec, member.shard.rows(member.recipe.train))
        self.population = Population(members, runtime)
        self.feed = Feed(members, runtime.device, self.population.is_noisy)
        self.progress = {member.name: Progress() for member in members}
        self.best: dict[str, dict[str, Tensor]] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.at = {member.name: row for row, member in enumerate(members)}  # the rows of those that train
        self.step = 0  # that all of them have made
        self.pauses = {m.name: (m.recipe.train.evaluation_interval, m.recipe.train.steps) for m in members}
        self.clock, self.reported = self.began, 0
        self.spacing = Spacing()

    def advance(self) -> None:
        """One step of every member that trains, and what is due after it."""
        members, names = self.population.members, list(self.at)
        logs = [name for name in names if self._logs(members[self.at[name]].recipe.train)]
        batch = self.feed.take()
        moved = self.population.step(batch, self._active(), measure=bool(logs))
        gone = {} if moved.moved is None else self._lost(moved, batch)
        self.step += 1
        for name, row in self.at.items() if self.population.dropped_examples else ():
            self.progress[name].dropped_examples += self.population.dropped_examples[row]
        if logs:
            self._report([members[self.at[name]] for name in logs if name not in gone], moved)
        for name in [name for name in names if name not in gone and due(self.step, *self.pauses[name])]:
            if ended := self._pause(members[self.at[name]]):
                gone[name] = ended
        if gone:
            self.end(gone)

    def end(self, gone: "dict[str, Ended | WorkerError]") -> None:
        """These members leave, each with how it ended or its error."""
        for name, how in gone.items():
            self.progress[name].step = self.step
            self.outcomes[name] = self._outcome(name, how)
            self.finished(self.outcomes[name])
            del self.at[name]
        # a compiled step is made for one number of rows: those that ended rest in it until half of them do
        if not self.population.is_compiled or len(self.at) * 2 <= len(self.population):
            keep = list(self.at.values())
            self.population.select(keep)
            self.feed.select(keep)
            self.at = {name: row for row, name in enumerate(self.at)}

    # --- saved and restored ----------------------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Whether a checkpoint is; not where all have ended."""
        every = self.population.members[0].recipe.train.checkpoint_every
        return due(self.step, every, 0) and self.spacing.is_over()

    def capture(self) -> Snapshot:
        """All that is not a function of the members and the step. The tensors change with the next one."""
        best = {f"{name}/{key}": t for name, weights in self.best.items() for key, t in weights.items()}
        state = {
            "rows": [member.name for member in self.population.members],
            "steps": self.population.steps,
            "training": list(self.at),
            "progress": {name: asdict(self.progress[name]) for name in self.at},
        }
        return Snapshot(self.step, {**self.population.tensors(), "best": best}, state)

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on where a population with these members in its rows was captured, bit for bit on a CPU.

        Raises Misfit, and is of no more use, if the snapshot does not fit.
        """
        state, rows = snapshot.state, [member.name for member in self.population.members]
        assert state["rows"] == rows, "whoever restores takes the members from the snapshot"
        self.population.put(snapshot.tensors, state["steps"])
        self.step = self.reported = snapshot.step
        self.feed.steps = [snapshot.step] * len(rows)
        self.at = {name: rows.index(name) for name in state["training"]}
        self.progress |= {name: Progress(**saved) for name, saved in state["progress"].items()}
        for key, tensor in snapshot.tensors["best"].items():
            name, _, parameter = key.partition("/")
            self.best.setdefault(name, {})[parameter] = tensor.to(self.runtime.device)

    # --- after a step ----------------------------------------------------------------------------------------------

    def _active(self) -> Tensor | None:
        if len(self.at) == len(self.population):
            return None
        active = torch.zeros(len(self.population), dtype=torch.bool, device=self.runtime.device)
        active[list(self.at.values())] = True
        return active

    def _logs(self, train: Training) -> bool:
        return self.step == 0 or due(self.step + 1, train.log_every, train.steps)

    def _pause(self, member: Member) -> Ended | None:
        """Evaluates a member if it is time; whether it has come to its end."""
        train, progress = member.recipe.train, self.progress[member.name]
        progress.step = self.step
        if self.judges[member.name] and due(progress.step, train.evaluation_interval, train.steps):
            task = self.population.mirror(self.at[member.name])
            values = validate(task, member.shard, member.recipe, self.runtime, self.population.precision)
            if (
                judge(progress, values, train, lambda record: self.runtime.report({"member": member.name, **record}))
                and train.keep == "best"
            ):
                self.best[member.name] = {n: t.clone() for n, t in task.network.state_dict().items()}
        return how_ended(progress, train)

    def _lost(self, moved: Moved, batch: Batch) -> dict[str, Ended | WorkerError]:
        """The members whose loss or gradient is not finite, each with the error that `fit` would raise."""
        assert moved.moved is not None
        lost: dict[str, Ended | WorkerError] = {}
        for name, row in self.at.items():
            if not moved.moved[row]:
                lost[name] = self._error(row, moved, batch)
        return lost

    def _error(self, row: int, moved: Moved, batch: Batch) -> WorkerError:
        population, member = self.population, self.population.members[row]
        task = population.export(row).train()
        assert moved.gradients is not None
        for name, gradient in population.layout.split(moved.gradients[row]).items():
            task.get_parameter(name).grad = gradient
        optimizer = member.recipe.optimizer.build(task.named_parameters())
        self.progress[member.name].step = self.step
        learner = Learner(task, task, optimizer, population.precision, self.progress[member.name])
        norm = None if moved.norms is None else moved.norms[row]
        own = {name: tensor[row] for name, tensor in batch.items()}
        try:
            health.require_finite(learner, own, moved.losses[row], norm, member.recipe.train.accumulate)
        except WorkerError as error:
            return error
        raise AssertionError("a row stays only if its loss or its norm is not finite")

    def _outcome(self, name: str, how: Ended | WorkerError) -> Outcome:
        if isinstance(how, WorkerError):
            self.runtime.report({"event": "member_failed", "member": name, "reason": str(how)})
            return Outcome(name, error=how)
        task = self.population.export(self.at[name]).train()
        if name in self.best:
            put_weights(task, self.best.pop(name))
        return Outcome(name, Result(task, self.progress[name], how, time.perf_counter() - self.began))

    # --- records ---------------------------------------------------------------------------------------------------

    def _report(self, members: list[Member], moved: Moved) -> None:
        """One record for each of the members, at the same step."""
        now = time.perf_counter()
        losses = moved.losses.tolist()
        norms = None if moved.norms is None else moved.norms.tolist()
        memory, at = memory_bytes(self.runtime.device), round(time.time(), 3)
        for member in members:
            row, train, step = self.at[member.name], member.recipe.train, self.step
            lr = member.recipe.optimizer.lr * member.recipe.schedule.factor(step - 1, train.steps)
            record: Record = {
                "member": member.name,
                "step": step,
                "steps": train.steps,
                "split": "train",
                "loss": losses[row],
                "lr": lr,
                "memory_bytes": memory,
                "time": at,
            }
            if self.progress[member.name].dropped_examples:
                record["dropped_examples"] = self.progress[member.name].dropped_examples
            if norms is not None:
                record["grad_norm"] = norms[row]
            if step > 1:
                pace = (step - self.reported) / max(now - self.clock, 1e-9)
                record |= {"examples_per_s": pace * train.batch_size, "eta_s": (train.steps - step) / pace}
            self.runtime.report(record)
        if members:
            self.clock, self.reported = now, self.step
