"""Short fits that begin with given weights, again and again: the rounds of a federation, the steps of an evolution.

    cohort = Cohort(recipe, spec)
    trained = cohort.train(weights, [Job("a", data.shard(), steps=5), Job("b", other.shard(), steps=9)])

What `core.train.fit` gives each job is what is right; models, optimizer state and recordings are made once and used
again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from core.data import Shard, Spec
from core.errors import WorkerError
from core.learner import Learner, Progress, Pull, start
from core.optim import Constant
from core.population.executor import Executor
from core.population.feed import BLOCK_STEPS, Feed
from core.population.frame import Frame
from core.population.member import Member, filled_rows
from core.population.population import Population
from core.recipe import Recipe
from core.runtime import LOCAL, Runtime
from core.train import fit


@dataclass(frozen=True)
class Job:
    """One short fit. `start` [D]: where it begins if not where all do; `seed`: of its keyed noise.

    pull: vectors [P] by the frame's order; see `core.learner.Pull`.
    """

    name: str
    shard: Shard
    steps: int
    seed: int = 0
    start: Tensor | None = None
    strength: float = 0.0
    anchor: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True)
class Trained:
    """What became of a job: its weights [D] and the mean loss of its steps; or why it failed."""

    vector: Tensor
    loss: float
    error: str | None = None


class Cohort:
    """Trains jobs of one recipe, one after the other or as rows of a population. Results come in the jobs' order."""

    def __init__(
        self,
        recipe: Recipe,
        spec: Spec,
        executor: Executor = "loop",
        runtime: Runtime = LOCAL,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        """`weights`: by the network's names; only those of frozen parameters and counters matter."""
        self.spec, self.executor = spec, executor
        self.runtime = replace(runtime, report=lambda record: None, listens=False)
        self.recipe = recipe
        self.initial = weights
        self.learner = start(self.recipe, spec, weights, self.runtime)
        if runtime.device.type == "cpu":
            _lay_out(self.learner, recipe.privacy is not None)
        self.frame = Frame.around(self.learner.task, self.recipe)
        self.counters = {n: b.clone() for n, b in self.learner.task.named_buffers() if not b.is_floating_point()}
        self._population: Population | None = None
        self._recipes: dict[tuple[int, float], Recipe] = {}

    def train(self, weights: Tensor, jobs: Sequence[Job], factor: float = 1.0) -> list[Trained]:
        """Trains each job from `weights` [D]; `factor` on the learning rate. All jobs have the same kinds of pull."""
        if self.executor == "loop":
            return [self._alone(weights, job, factor) for job in jobs]
        stacks: dict[int | None, list[int]] = {}  # the places of jobs that can be rows of one population
        for place, job in enumerate(jobs):
            stacks.setdefault(filled_rows(self.recipe, job.shard), []).append(place)
        trained: dict[int, Trained] = {}
        for places in stacks.values():
            stack = [jobs[place] for place in places]
            some = (
                self._together(weights, stack, factor) if len(stack) > 1 else [self._alone(weights, stack[0], factor)]
            )
            trained |= zip(places, some, strict=True)
        return [trained[place] for place in range(len(jobs))]

    # --- one after the other ---------------------------------------------------------------------------------------

    def _alone(self, weights: Tensor, job: Job, factor: float) -> Trained:
        learner, start = self.learner, weights if job.start is None else job.start
        self.frame.put(learner.task, start)
        for name, counter in self.counters.items():
            learner.task.get_buffer(name).copy_(counter)
        learner.optimizer.state.clear()
        learner.progress = Progress()
        learner.pull = self._pull(job)
        try:
            result = fit(self._recipe(job, factor), job.shard, runtime=self.runtime, learner=learner)
        except WorkerError as error:
            return Trained(start, float("nan"), str(error))
        return Trained(self.frame.vector(learner.task), float("nan") if result.loss is None else result.loss)

    def _pull(self, job: Job) -> Pull | None:
        """The job's vectors, cut up for the learner's parameters."""
        if not job.strength and job.shift is None:
            return None
        names = [name for name, p in self.learner.task.named_parameters() if p.requires_grad]

        def pieces(vector: Tensor | None) -> list[Tensor] | None:
            if vector is None:
                return None
            views = self.frame.layout.split(vector.to(self.runtime.device))
            return [views[name] for name in names]

        return Pull(job.strength, pieces(job.anchor), pieces(job.shift))

    def _recipe(self, job: Job, factor: float) -> Recipe:
        key = (job.steps, factor)
        if key not in self._recipes:
            self._recipes = {known: recipe for known, recipe in self._recipes.items() if known[1] == factor}
            train = replace(self.recipe.train, steps=job.steps)
            self._recipes[key] = replace(self.recipe, train=train, schedule=Constant(level=factor))
        found = self._recipes[key]
        return replace(found, seed=job.seed) if self.recipe.privacy else found

    # --- together --------------------------------------------------------------------------------------------------

    def _together(self, weights: Tensor, jobs: Sequence[Job], factor: float) -> list[Trained]:
        order = sorted(range(len(jobs)), key=lambda i: -jobs[i].steps)  # those that end first can then be cut off
        sorted_jobs = [jobs[i] for i in order]
        members = [Member(job.name, self._recipe(job, factor), job.shard, self.initial) for job in sorted_jobs]
        starts = [weights if job.start is None else job.start for job in sorted_jobs]
        full = torch.stack(starts) if any(job.start is not None for job in jobs) else weights.repeat(len(jobs), 1)
        rows, buffers = self._split(full)
        population = self._restarted(members, rows, buffers)
        population.pull = _pulls(sorted_jobs, self.runtime.device)
        losses, steps, failed = self._run(population, members)
        vectors = (self._joined(rows, buffers) if buffers else rows).cpu()
        trained: list[Trained | None] = [None] * len(jobs)
        for row, i in enumerate(order):
            error = f"training: the loss is not finite at step {failed[row]}" if row in failed else None
            trained[i] = Trained(vectors[row], float(losses[row] / max(1, steps[row])), error)
        return [one for one in trained if one is not None]

    def _run(self, population: Population, members: Sequence[Member]) -> tuple[Tensor, list[int], dict[int, int]]:
        """Sums of the losses [N], the steps of each row, and at which step which row failed."""
        steps = [member.recipe.train.steps for member in members]
        losses, failed = torch.zeros(len(members), dtype=torch.float64), dict[int, int]()
        feed = Feed(members, self.runtime.device, population.is_noisy, first=BLOCK_STEPS)
        count = len(members)
        for step in range(steps[0]):
            while steps[count - 1] <= step:
                count -= 1
            batch = feed.take()
            if count < len(population):
                population.shorten(count)
                if population.pull:
                    population.pull = _shortened(population.pull, count)
            batch = {name: tensor[:count] for name, tensor in batch.items()}
            active = None
            if failed:
                active = torch.tensor([row not in failed for row in range(count)])
            moved = population.step(batch, active)
            if moved.moved is not None:
                for row in (~moved.moved).nonzero()[:, 0].tolist():
                    failed.setdefault(row, step + 1)
            losses[:count] += moved.losses.double().cpu()
        return losses, steps, failed

    def _split(self, full: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows [N, P] and the buffers of vectors [N, D], each its own memory where there are buffers."""
        device, frame = self.runtime.device, self.frame
        if not frame.buffers:
            return full.to(device), {}
        buffers = {
            place.name: full[:, place.start : place.end].reshape(len(full), *place.shape).to(device).clone()
            for place in frame.buffers
        }
        return full[:, : frame.trainable].to(device).contiguous(), buffers

    def _joined(self, rows: Tensor, buffers: dict[str, Tensor]) -> Tensor:
        parts = [buffers[place.name].reshape(len(rows), -1) for place in self.frame.buffers]
        return torch.cat([rows, *parts], dim=1)

    def _restarted(self, members: Sequence[Member], rows: Tensor, buffers: dict[str, Tensor]) -> Population:
        """The population of before with these members, or the first one."""
        if self._population is None:
            self._population = Population(members[:1], self.runtime)
        count, device = len(members), self.runtime.device
        counters = {name: c.to(device).expand(count, *c.shape).clone() for name, c in self.counters.items()}
        self._population.restart(members, rows, {**buffers, **counters})
        return self._population


def _pulls(jobs: Sequence[Job], device: torch.device) -> Pull | None:
    """The pulls of all rows: one vector where all have the same one, else [N, P]."""
    first = jobs[0]
    if not first.strength and first.shift is None:
        return None

    def column(vectors: list[Tensor | None]) -> list[Tensor] | None:
        there = [vector for vector in vectors if vector is not None]
        if not there:
            return None
        return [(there[0] if all(vector is there[0] for vector in there) else torch.stack(there)).to(device)]

    return Pull(first.strength, column([job.anchor for job in jobs]), column([job.shift for job in jobs]))


def _shortened(pull: Pull, count: int) -> Pull:
    def cut(vectors: list[Tensor] | None) -> list[Tensor] | None:
        return vectors and [vector[:count] if vector.ndim == 2 else vector for vector in vectors]

    return Pull(pull.strength, cut(pull.anchor), cut(pull.shift))


def _lay_out(learner: Learner, is_private: bool) -> None:
    """Convolutions on a CPU are faster with the channels innermost."""
    if any(p.ndim == 4 for p in learner.task.parameters()):
        learner.task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if is_private:
            return  # layouts cannot be asked for where each example has a gradient of its own
        for module in learner.task.modules():
            if isinstance(module, nn.MaxPool2d):
                module.register_forward_hook(_keep_layout)


def _keep_layout(pool: nn.Module, inputs: object, output: Tensor) -> None:
    """The gradient that comes back from a layer behind a pooling, such as a flatten, is turned while it is small."""
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
