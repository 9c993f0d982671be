"""N members of one architecture as one matrix: a row of weights each, trained together by one stack of kernels.

vmap lies inside autograd: the loss of every member is one forward pass over stacked weights, and since members do not
touch each other the gradient of their sum is each one's own. So only forward rules are needed, and the backward pass is
made of ordinary kernels.

    population = Population(members)
    population.step(batch)                 # batch: tensors [N, R, ...]
    task = population.export(3)            # an ordinary model
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from core.errors import ConfigError, DataError
from core.learner import Pull, freeze, prepare
from core.models.layers import Dropout
from core.optim.stacked import Layout, column, stack
from core.population.linear import StackedLinears
from core.population.member import Member, Signature
from core.population.recorded import Recording
from core.precision import Precision
from core.privacy.gradient import clipped_sum, noise_like, plain_attention
from core.randomness import generator
from core.runtime import LOCAL, Runtime
from core.task import Batch, Task, split
from core.train import nonzero

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Moved:
    """A step of all members: losses [N]; gradient norms [N] before clipping, if they were taken.

    `moved` [N] bool: a row stays if it was not active, or its loss or norm was not finite; None if all moved. Where one
    stayed, `gradients` [N, D] are what it would have moved by.
    """

    losses: Tensor
    norms: Tensor | None = None
    moved: Tensor | None = None
    gradients: Tensor | None = None


class Misfit(DataError):
    """What was saved is not of these members."""


class Population:
    """`rows` [N, D]: each member's trainable weights; `steps`: how many each has made. All members share a signature.

    A member's numbers depend neither on its slot nor on N nor on its neighbors (but for rounding): its dropout and its
    batches are addressed by its own seed and step.
    """

    def __init__(self, members: Sequence[Member], runtime: Runtime = LOCAL) -> None:
        """Raises ConfigError for no members, or members that cannot be stacked."""
        if not members:
            raise ConfigError("population: there are no members; name at least one")
        self.signature = Signature.of(members[0])
        for member in members:
            _require_alike(member, members[0], self.signature)
        self.members, self.steps, self.runtime = list(members), [0] * len(members), runtime
        self.precision = Precision.of(members[0].recipe.train.precision, runtime.device)
        if self.precision.scaler:
            raise ConfigError("train.precision: fp16 scales the loss of one model at a time; use bf16")
        self.task = self._template()
        named = list(self.task.named_parameters())
        self.layout = Layout.of(named, members[0].recipe.optimizer)
        states = [self._fresh(member) for member in members]
        self.rows = torch.stack([self.layout.join(state).to(runtime.device) for state in states])
        fixed = [name for name, p in named if not p.requires_grad]
        self.fixed = self._stacked(states, fixed)
        self.buffers = self._stacked(states, [name for name, _ in self.task.named_buffers()])
        self.optimizer = stack([member.recipe.optimizer for member in members], self.layout, self.rows)
        self._vary_dropout()
        self._note_schedules()
        self._forward: Callable[..., tuple[Tensor, Tensor]] = vmap(partial(_member, self.task, self.layout))
        self.is_compiled = runtime.compiles(members[0].recipe.train.compile)
        if self.is_compiled:
            self._forward = torch.compile(self._forward)
        self._mirror: Task | None = None
        self._recording = Recording()
        self.pull: Pull | None = None
        self.dropped_examples: list[int] = []  # with privacy, of each member in the last step

    def __len__(self) -> int:
        return len(self.members)

    # --- a step ----------------------------------------------------------------------------------------------------

    def step(self, batch: Batch, active: Tensor | None = None, measure: bool = False) -> Moved:
        """One optimizer step of each member on its rows of `batch` (tensors [N, R, ...]).

        `active` [N] bool: the others keep weights, buffers and optimizer state. `measure` takes the gradient norms.
        """
        resting = None if active is None else (~active).nonzero()[:, 0]
        resting = None if resting is None or not len(resting) else resting
        buffers = {n: t[resting].clone() for n, t in self.buffers.items()} if resting is not None else {}
        losses, gradients = self._gradients(batch)
        if self.pull:
            self.pull.add([self.rows], [gradients])
        norms = self._clip(gradients, measure)
        moved = self._moved(losses, norms, active, measure)
        if moved is None:
            self._update(gradients)
            self.steps = [step + 1 for step in self.steps]
            return Moved(losses, norms)
        held = (~moved).nonzero()[:, 0]
        before, kept = self._state(held), gradients.clone()
        self._update(gradients)
        self._put(held, before)
        for name, tensor in buffers.items():
            self.buffers[name][resting] = tensor
        self.steps = [step + went for step, went in zip(self.steps, moved.tolist(), strict=True)]
        return Moved(losses, norms, moved, kept)

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses [N] and gradients [N, D] of the members' weighted mean losses."""
        batch = self._with_smoothing(batch)
        micros = split(batch, self.members[0].recipe.train.accumulate, dim=1)
        if self.members[0].recipe.privacy:
            return self._private(micros)
        total = None if len(micros) == 1 else self._total_weight(micros)
        if total is None and self._can_record():
            return self._recording(self._shares, self.rows, self.fixed, self.buffers, batch)
        losses = self.rows.new_zeros(len(self))
        gradients: Tensor | None = None
        for micro in micros:
            share, gradient = self._shares(self.rows, self.fixed, self.buffers, micro, total)
            losses = losses + share
            gradients = gradient if gradients is None else gradients.add_(gradient)
        assert gradients is not None
        return losses, gradients

    def _shares(
        self, rows: Tensor, fixed: Tensors, buffers: Tensors, micro: Batch, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The members' shares [N] of their losses in a micro-batch, and the gradients [N, D] of those."""
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            with self.precision.autocast(), _kernels(rows.device), self._linears():
                each, weights = self._forward(rows, fixed, buffers, micro)
            whole = nonzero((weights * micro["weight"]).sum(1)) if total is None else total
            share = (each * micro["weight"]).sum(1) / whole
            (gradient,) = torch.autograd.grad(share.sum(), rows)
        return share.detach(), gradient

    def _linears(self) -> AbstractContextManager[Any]:
        return StackedLinears() if self.precision.dtype is None and not self.is_compiled else nullcontext()

    def _can_record(self) -> bool:
        """Whether a step is a plain function of its tensors: none of them is changed on the way."""
        return not self.is_compiled and self.precision.dtype is None and not self.buffers

    def _private(self, micros: list[Batch]) -> tuple[Tensor, Tensor]:
        """The same by DP-SGD: each example of each member is clipped by itself, each member gets noise of its own."""
        bounds = column([m.recipe.privacy.clip for m in self.members if m.recipe.privacy], self.rows)
        bounds = bounds.flatten() if isinstance(bounds, Tensor) else self.rows.new_full((len(self),), bounds)
        gradients, losses = torch.zeros_like(self.rows), self.rows.new_zeros(len(self))
        dropped = torch.zeros(len(self), dtype=torch.int64, device=self.rows.device)
        with self.precision.autocast(), plain_attention():
            for micro in micros:
                sums, each, which = vmap(self._clipped)(self.rows, self.fixed, self.buffers, micro, bounds)
                gradients += sums
                losses += each.sum(1)
                dropped += which.sum(1)
        self.dropped_examples = dropped.tolist()
        sizes = torch.tensor([m.recipe.train.batch_size for m in self.members]).to(self.rows)
        for row, (member, step) in enumerate(zip(self.members, self.steps, strict=True)):
            assert member.recipe.privacy is not None, "members of one signature have it or have it not"
            for name, part in self.layout.split(gradients[row]).items():
                part += noise_like(part, member.recipe.privacy, member.recipe.seed, step, name)
        return losses / sizes, gradients / sizes[:, None]

    def _clipped(
        self, row: Tensor, fixed: Tensors, buffers: Tensors, batch: Batch, clip: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One member's sum of clipped gradients [D], its examples' losses [R], and which of them were dropped [R]."""
        sums, losses, dropped = clipped_sum(self.task, self.layout.split(row), {**fixed, **buffers}, batch, clip)
        return torch.cat([sums[place.name].flatten() for place in self.layout.places]), losses, dropped

    def _total_weight(self, micros: list[Batch]) -> Tensor:
        weigh = vmap(self.members[0].recipe.goal.weights)
        return nonzero(torch.stack([(weigh(micro) * micro["weight"]).sum(1) for micro in micros]).sum(0))

    def _with_smoothing(self, batch: Batch) -> Batch:
        """Label smoothing that differs between members travels with the examples."""
        smoothing = column([getattr(m.recipe.goal, "label_smoothing", 0.0) for m in self.members], self.rows)
        if isinstance(smoothing, float):
            self.task.objective = self.members[0].recipe.goal  # all have it now, whoever was here before
            return batch
        return {**batch, "label_smoothing": smoothing.expand_as(batch["weight"])}

    def _clip(self, gradients: Tensor, measure: bool) -> Tensor | None:
        clips = [member.recipe.train.clip for member in self.members]
        if not measure and not any(clips):
            return None
        norms: Tensor = torch.linalg.vector_norm(gradients, dim=1)
        if any(clips):
            limits = column([clip or float("inf") for clip in clips], norms)
            limits = limits.flatten() if isinstance(limits, Tensor) else limits
            gradients.mul_((limits / (norms + 1e-6)).clamp(max=1.0)[:, None])  # 1e-6: as torch's clip_grad_norm_
        return norms

    def _moved(self, losses: Tensor, norms: Tensor | None, active: Tensor | None, measure: bool) -> Tensor | None:
        """Which members may move, [N]; None if all. Elsewhere than on a CPU looking at every loss would stall."""
        if not measure and self.rows.device.type != "cpu":
            return active
        moved = losses.isfinite()
        if norms is not None:
            moved &= norms.isfinite()
        if active is not None:
            moved &= active
        return None if bool(moved.all()) else moved

    def _update(self, gradients: Tensor) -> None:
        factors = dict[tuple[int, int], float]()
        for plan, step in zip(self._plans, self.steps, strict=True):
            if (plan, step) not in factors:
                schedule, steps = self._schedules[plan]
                factors[plan, step] = schedule.factor(min(step, steps), steps)
        rates = [factors[key] for key in zip(self._plans, self.steps, strict=True)]
        lr = self.optimizer.rate(rates, self.rows)
        self.optimizer.update(self.rows, gradients, lr, [step + 1 for step in self.steps])

    def _note_schedules(self) -> None:
        """Which schedules there are, and each member's: few have one of their own."""
        wanted = [(member.recipe.schedule, member.recipe.train.steps) for member in self.members]
        self._schedules = list(dict.fromkeys(wanted))
        places = {schedule: place for place, schedule in enumerate(self._schedules)}
        self._plans = [places[schedule] for schedule in wanted]

    # --- saved and restored ----------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensors]:
        """All that a step reads or changes, in groups for a snapshot; the tensors themselves, not copies."""
        return {
            "population": {"rows": self.rows, **self.fixed, **self.buffers},
            "optimizer": dict(self.optimizer.state),
        }

    def put(self, saved: dict[str, Tensors], steps: Sequence[int]) -> None:
        """Takes over what `tensors` gave of a population with the same members in its rows, and its `steps`.

        Raises Misfit, and changes nothing, if it does not fit.
        """
        for group, own in self.tensors().items():
            if _shapes(own) != _shapes(saved.get(group, {})):
                raise Misfit(f"its {group} has other tensors than these members")
        for group, own in self.tensors().items():
            for name, tensor in own.items():
                tensor.copy_(saved[group][name])
        self.steps = list(steps)

    # --- slots -----------------------------------------------------------------------------------------------------

    def select(self, rows: Sequence[int]) -> None:
        """Keeps, repeats or reorders members; the population then has as many as `rows`."""
        index = torch.tensor(rows, dtype=torch.long, device=self.rows.device)
        self.members, self.steps = [self.members[i] for i in rows], [self.steps[i] for i in rows]
        self.rows = self.rows.index_select(0, index)
        self.fixed = {name: tensor.index_select(0, index) for name, tensor in self.fixed.items()}
        self.buffers = {name: tensor.index_select(0, index) for name, tensor in self.buffers.items()}
        self.optimizer.select(rows)
        self._note_schedules()

    def restart(self, members: Sequence[Member], rows: Tensor, buffers: Tensors) -> None:
        """All members begin anew, with the weights `rows` [N, D] and these buffers, which become the population's own.

        The new members must have the old ones' signature, optimizers and dropout; schedules and steps may be other.
        """
        self.members, self.steps = list(members), [0] * len(members)
        self.rows, self.buffers = rows, buffers
        self.fixed = {name: tensor[:1].expand(len(members), *tensor.shape[1:]) for name, tensor in self.fixed.items()}
        self.optimizer.restart(len(members), rows)
        self._note_schedules()

    def shorten(self, count: int) -> None:
        """Only the first `count` members go on; the rows of the others stay as they are, in the same memory."""
        self.members, self.steps = self.members[:count], self.steps[:count]
        self.rows = self.rows[:count]
        self.fixed = {name: tensor[:count] for name, tensor in self.fixed.items()}
        self.buffers = {name: tensor[:count] for name, tensor in self.buffers.items()}
        self.optimizer.shorten(count)
        self._plans = self._plans[:count]

    def clone(self, source: int, target: int) -> None:
        """Copies all weights, buffers, optimizer state and step of one member over another, which keeps its recipe."""
        there = torch.tensor([target], device=self.rows.device)
        self._put(there, self._state(torch.tensor([source], device=self.rows.device)))
        for name, tensor in [*self.fixed.items(), *self.buffers.items()]:
            if not name.endswith(".p"):  # a dropout of its own, as the recipe says
                tensor[target] = tensor[source]
        self.steps[target] = self.steps[source]

    def replace(self, row: int, member: Member) -> None:
        """Another member in this slot, from its first step on; shapes stay, so nothing is compiled anew.

        Raises ConfigError if it cannot be stacked with the others.
        """
        _require_alike(member, self.members[0], self.signature)
        state = self._fresh(member)
        self.members[row], self.steps[row] = member, 0
        self.rows[row] = self.layout.join(state).to(self.rows)
        for name in (*self.fixed, *self.buffers):
            if name in state:
                (self.fixed if name in self.fixed else self.buffers)[name][row] = state[name]
        self.optimizer.replace(row, member.recipe.optimizer)
        self._recording.forget()
        self._vary_dropout()
        self._note_schedules()

    def change(self, row: int, member: Member) -> None:
        """Other hyperparameters for the member in this slot, which keeps weights, optimizer state and step."""
        _require_alike(member, self.members[0], self.signature)
        self.members[row] = member
        self.optimizer.change(row, member.recipe.optimizer)
        self._recording.forget()
        self._vary_dropout()
        self._note_schedules()

    def weighted_mean(self, weights: Tensor) -> Tensors:
        """The mean of the members' weights and floating-point buffers, by the network's names; `weights` [N] >= 0."""
        if not weights.sum() > 0:
            raise ConfigError("population: the weights of a mean must not all be 0")
        share = (weights / weights.sum()).to(self.rows.device, torch.float64)
        mean = self.layout.split(torch.einsum("n,nd->d", share, self.rows.double()).to(self.rows.dtype))
        for name, tensor in [*self.fixed.items(), *self.buffers.items()]:
            if tensor.is_floating_point() and not name.endswith(".p"):
                mean[name] = torch.einsum("n,n...->...", share, tensor.double()).to(tensor.dtype)
        return {name.removeprefix("network."): tensor for name, tensor in mean.items()}

    def perturb(self, sigma: float | Tensor, *key: int | str) -> None:
        """Adds Gaussian noise of standard deviation `sigma` (or [N]) to the trainable weights.

        The noise of a member is addressed by the key, its seed and its name, never by its slot.
        """
        noise = torch.stack(
            [
                torch.randn(self.layout.size, generator=generator(*key, member.recipe.seed, member.name))
                for member in self.members
            ]
        ).to(self.rows)
        self.rows += noise * (sigma[:, None].to(self.rows) if isinstance(sigma, Tensor) else sigma)

    def export(self, row: int) -> Task:
        """A member as an ordinary model of its own, on the population's device."""
        member = self.members[row]
        task = member.recipe.build(member.shard.spec).to(self.rows.device)
        freeze(task, member.recipe.freeze)
        return self._filled(task, row)

    def mirror(self, row: int) -> Task:
        """The same in a model that the next call overwrites: to look at members in turn, such as in evaluations."""
        if self._mirror is None:
            self._mirror = self.members[0].recipe.build(self.members[0].shard.spec).to(self.rows.device)
        self._mirror.objective = self.members[row].recipe.goal
        return self._filled(self._mirror, row)

    # --- parts -----------------------------------------------------------------------------------------------------

    def _template(self) -> Task:
        """The task whose operations all members share: the noisiest of them, since none may lack a dropout."""
        noisiest = max(self.members, key=lambda member: getattr(member.recipe.model, "dropout", 0.0))
        task = prepare(noisiest.recipe, noisiest.shard.spec).to(self.runtime.device)
        task.objective = self.members[0].recipe.goal
        return task.train()

    @property
    def is_noisy(self) -> bool:
        """Whether examples need keys for dropout."""
        return any(isinstance(m, Dropout) and (isinstance(m.p, Tensor) or m.p > 0) for m in self.task.modules())

    def _fresh(self, member: Member) -> Tensors:
        """The state with which a member begins, by the task's names."""
        weights, names = member.weights, [name for name, _ in _state_of(self.task)]
        if weights is not None and all(name.removeprefix("network.") in weights for name in names):
            state = {name: weights[name.removeprefix("network.")] for name in names}
            if all(state[name].shape == tensor.shape for name, tensor in _state_of(self.task)):
                # nothing is left to be drawn
                return {name: state[name].to(tensor.dtype) for name, tensor in _state_of(self.task)}
        report = self.runtime.report
        runtime = replace(self.runtime, report=lambda record: report({"member": member.name, **record}))
        return dict(_state_of(prepare(member.recipe, member.shard.spec, weights, runtime)))

    def _stacked(self, states: list[Tensors], names: list[str]) -> Tensors:
        return {name: torch.stack([s[name].detach().to(self.runtime.device) for s in states]) for name in names}

    def _vary_dropout(self) -> None:
        """Where members drop different shares, the share becomes a number per member."""
        shares = {getattr(member.recipe.model, "dropout", 0.0) for member in self.members}
        layers = [(name, m) for name, m in self.task.named_modules() if isinstance(m, Dropout)]
        if len(shares) == 1 and not any(isinstance(layer.p, Tensor) for _, layer in layers):
            return
        own = [
            [m.p for m in member.recipe.model.build(member.shard.spec).modules() if isinstance(m, Dropout)]
            for member in self.members
        ]
        for i, (name, layer) in enumerate(layers):
            if not isinstance(layer.p, Tensor):
                del layer.p
                layer.register_buffer("p", torch.zeros((), dtype=torch.float64), persistent=False)
            self.buffers[f"{name}.p"] = torch.tensor(
                [shares[i] for shares in own], dtype=torch.float64, device=self.rows.device
            )

    def _state(self, index: Tensor) -> Tensors:
        """Copies of rows of weights and optimizer state."""
        tensors = {"rows": self.rows, **self.optimizer.state}
        return {name: tensor.index_select(0, index) for name, tensor in tensors.items()}

    def _put(self, index: Tensor, saved: Tensors) -> None:
        for name, tensor in {"rows": self.rows, **self.optimizer.state}.items():
            tensor.index_copy_(0, index, saved[name])

    @torch.no_grad()
    def _filled(self, task: Task, row: int) -> Task:
        own = {**self.layout.split(self.rows[row]), **{n: t[row] for n, t in {**self.fixed, **self.buffers}.items()}}
        for name, tensor in _state_of(task):
            tensor.copy_(own[name])
        return task


def _member(
    task: Task, layout: Layout, row: Tensor, fixed: Tensors, buffers: Tensors, batch: Batch
) -> tuple[Tensor, Tensor]:
    """What vmap lifts: the task of one member, whose weights are `row`, on its rows -> losses [R], weights [R]."""
    losses, weights = functional_call(task, {**layout.split(row), **fixed, **buffers}, (batch,))
    return losses, weights


def _shapes(tensors: Tensors) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _state_of(task: nn.Module) -> list[tuple[str, Tensor]]:
    return [*task.named_parameters(), *((n, b) for n, b in task.named_buffers() if not n.endswith(".p"))]


def _require_alike(member: Member, first: Member, signature: Signature) -> None:
    if Signature.of(member) != signature:
        raise ConfigError(
            f"population: member {member.name} cannot be stacked with {first.name}: their models, data or optimizers "
            "differ in more than numbers; train them in populations of their own"
        )


def _kernels(device: torch.device) -> AbstractContextManager[Any]:
    """On a CPU the fused attention has no batching rule."""
    return plain_attention() if device.type == "cpu" else nullcontext()
