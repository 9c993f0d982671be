"""Where clients are trained and judged: a process that has their data. It knows nothing of rounds, engines or Flower.

A chunk of clients goes in, sums over their replies come out, so that a server never holds more than a few vectors
however large its cohort is. Which clients are in a chunk depends on the cohort alone: so do the numbers, whoever does
the work.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from core.data import Data, Shard
from core.errors import is_memory
from core.metrics import Metrics, State
from core.pool import Shared
from core.population.cohort import Cohort, Job, Trained
from core.population.executor import Executor
from core.population.frame import Frame
from core.randomness import seed_of
from core.runtime import Runtime, choose_device
from core.task import Task
from core.train import evaluate, metrics_of
from federated.clients import Clients
from federated.exchange import UPDATE, Order, Personal, Pull, Reply, Update, Vectors
from federated.inspection import Expected
from federated.intake import Intake, Partial, Sent, Told, Work
from federated.norm import l2_norm
from federated.run import FederateRun
from federated.transforms.chain import encode

STRATEGY, TRANSFORMS = "strategy.", "transforms."  # in front of the names of what a client keeps


@dataclass(frozen=True)
class Setting:
    """What stays the same for a whole run: what a site is made of. `weights` by name: those of the frozen
    parameters."""

    key: str
    run: FederateRun
    clients: Clients
    executor: Executor
    expected: Expected
    weights: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Verdict:
    """One client's metrics of one model, on `examples` held-out examples."""

    client: int
    model: str
    examples: int
    metrics: dict[str, float]


@dataclass
class Judged:
    """What held-out examples say: metric states by model ("shared", "personal"), which add, and each client's verdict.

    failed: clients that could not judge; withheld: those whose policy lets nothing of so few examples out."""

    states: dict[str, State] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    failed: list[Told] = field(default_factory=list)
    withheld: list[int] = field(default_factory=list)

    def merge(self, other: "Judged") -> None:
        """Takes in what others judged."""
        for model, state in other.states.items():
            self.states[model] = Metrics.merge(self.states[model], state) if model in self.states else state
        self.verdicts += other.verdicts
        self.failed += other.failed
        self.withheld += other.withheld


@dataclass(frozen=True)
class Begun:
    """A client whose training can begin: its data, its shard of training examples and how many steps it makes."""

    work: Work
    data: Data
    shard: Shard
    steps: int


class Site:
    """Trains and judges clients of one run in this process."""

    def __init__(self, setting: Setting) -> None:
        run = setting.run
        self.run, self.setting, self.strategy = run, setting, run.strategy
        self.runtime = Runtime(choose_device(run.device))
        self.cohort = Cohort(run.recipe, setting.clients.spec, setting.executor, self.runtime, setting.weights)
        self.frame: Frame = self.cohort.frame
        self.intake = Intake(run, self.frame, setting.expected)
        self.task: Task = run.recipe.build(setting.clients.spec).to(self.runtime.device)
        if setting.weights:
            self.task.network.load_state_dict(setting.weights, strict=False)
        self._loaded: Tensor | None = None
        kept = getattr(self.strategy, "kept", None)
        self.kept: Tensor | None = kept(self.frame, self.task) if kept else None

    # --- training --------------------------------------------------------------------------------------------------

    def train(self, order: Order, chunk: Sequence[Work]) -> Partial:
        """One round's work of some clients, let in. A client that fails is told of and does not count."""
        partial = Partial()
        for work, sent in zip(chunk, self.answers(order, chunk), strict=True):
            self.intake.take(partial, work, order.round, sent)
        return partial

    def answers(self, order: Order, chunk: Sequence[Work]) -> list[Sent]:
        """What each of some clients sends, in their order."""
        ready, sent = list[Begun](), dict[int, Sent]()
        for work in chunk:
            try:
                ready.append(self._begin(order, work))
            except Exception as error:  # noqa: BLE001 - a client's failure is a fact about that client, not about the run
                sent[work.client] = Sent(Told.failed(work.client, error))
        jobs = [self._job(order, begun) for begun in ready]
        personal = self._personal(order, ready)
        for begun, job, trained in zip(ready, jobs, self._trained(order, jobs), strict=True):
            client = begun.work.client
            try:
                own = personal.get(client)
                sent[client] = (
                    Sent(trained) if isinstance(trained, Told) else self._sent(order, begun, job, trained, own)
                )
            except Exception as error:  # noqa: BLE001 - as above
                sent[client] = Sent(Told.failed(client, error))
        return [sent[work.client] for work in chunk]

    def _trained(self, order: Order, jobs: Sequence[Job]) -> list[Trained | Told]:
        """What became of each job. If one raises, such as for a file that it cannot read, each is trained alone to find
        out which."""
        factor = self._factor(order.round)
        try:
            return [*self.cohort.train(order.weights, jobs, factor)] if jobs else []
        except Exception as error:
            if is_memory(error):
                raise
            found: list[Trained | Told] = []
            for job in jobs:
                try:
                    found += self.cohort.train(order.weights, [job], factor)
                except Exception as own:  # noqa: BLE001 - as above
                    found.append(Told.failed(int(job.name), own))
            if all(isinstance(one, Trained) for one in found):
                raise  # it is nobody's alone, so it is ours
            return found

    def _begin(self, order: Order, work: Work) -> Begun:
        data = self.setting.clients.data(work.client, seed_of(self.run.recipe.seed, "client", work.client, order.round))
        attack = self.run.attack
        if attack and attack.is_attacker(work.client, len(self.setting.clients), self.run.recipe.seed):
            data = attack.poison(data, self.run.recipe.seed, work.client)
        shard = training_only(data).shard()
        return Begun(work, data, shard, self.steps(shard))

    def steps(self, shard: Shard, epochs: float | None = None) -> int:
        """How many optimizer steps a client makes in a round, or in so many epochs."""
        if self.run.local_steps is not None and epochs is None:
            return self.run.local_steps
        wanted = self.run.local_epochs if epochs is None else epochs
        return max(1, math.ceil(wanted * shard.steps_per_epoch(self.run.recipe.train) - 1e-9))

    def _factor(self, round: int) -> float:
        """The schedule goes over rounds; within a round the learning rate stands still."""
        return self.run.recipe.schedule.factor(round - 1, self.run.rounds)

    def _job(self, order: Order, begun: Begun) -> Job:
        mine = _under(STRATEGY, begun.work.mine)
        start = self._own_start(order, mine)
        pull = self.strategy.pull(order, mine, self.frame) or Pull()
        return self._made(begun, "train", order.round, start, pull)

    def _own_job(self, order: Order, begun: Begun, own: Personal) -> Job:
        anchor = own.pull.anchor if own.pull.anchor is None else own.pull.anchor[: self.frame.trainable]
        return self._made(begun, "personal", order.round, own.start, replace(own.pull, anchor=anchor))

    def _made(self, begun: Begun, purpose: str, round: int, start: Tensor | None, pull: Pull) -> Job:
        client = begun.work.client
        return Job(
            str(client), begun.shard, begun.steps, seed_of(self.run.recipe.seed, purpose, client, round), start,
            pull.strength, pull.anchor, pull.shift,
        )  # fmt: skip

    def _own_start(self, order: Order, mine: Vectors) -> Tensor | None:
        """Where a client begins that keeps some of the model's numbers to itself."""
        if self.kept is None or "kept" not in mine:
            return None
        return torch.where(self.kept, mine["kept"], order.weights)

    def _personal(self, order: Order, ready: Sequence[Begun]) -> dict[int, Tensor]:
        """The clients' own models, trained beside the shared one, where the strategy has any."""
        wanted = [(begun, self.strategy.personal(order, _under(STRATEGY, begun.work.mine))) for begun in ready]
        jobs = [self._own_job(order, begun, own) for begun, own in wanted if own is not None]
        return _vectors(jobs, self._trained(order, jobs))

    def _sent(self, order: Order, begun: Begun, job: Job, trained: Trained, personal: Tensor | None) -> Sent:
        """A trained client's answer, as it goes over the wire."""
        work, mine = begun.work, _under(STRATEGY, begun.work.mine)
        client, examples = work.client, len(begun.data.splits["train"])
        if trained.error:
            return Sent(Told(client, trained.loss, examples, fault=trained.error))
        start = order.weights if job.start is None else job.start
        kept = {} if self.kept is None else {"kept": torch.where(self.kept, trained.vector, 0.0)}
        delta = trained.vector.sub_(start)  # in place: nobody needs the weights any more
        if self.kept is not None:
            delta = torch.where(self.kept, 0.0, delta)
        lr = self.run.recipe.optimizer.lr * self._factor(order.round)
        before = self._before(order, begun) if self.strategy.measures_before else None
        update = Update(client, delta, examples, job.steps, trained.loss, lr, before)
        reply, mine = self.strategy.reply(update, order, mine, self.frame)
        mine = {**mine, **kept, **({"personal": personal} if personal is not None else {})}
        seed, errors = self.run.recipe.seed, _under(TRANSFORMS, work.mine)
        sent, errors = encode(
            self.run.transforms, self._forged(reply, order), errors, self.frame, seed, client, order.round
        )
        told = Told(client, trained.loss, examples, l2_norm(delta[: self.frame.trainable]), sent.size_bytes)
        keeps = {**_over(STRATEGY, mine), **_over(TRANSFORMS, errors)}
        return Sent(told, sent, keeps if self.strategy.is_stateful or errors else {})

    def whole(self, order: Order, reply: Reply) -> Reply:
        """A reply with all weights by name in place of the update."""
        return replace(reply, payload=self.frame.named(order.weights + reply.payload[UPDATE]))

    def _forged(self, reply: Reply, order: Order) -> Reply:
        attack = self.run.attack
        if not attack or not attack.is_attacker(reply.client, len(self.setting.clients), self.run.recipe.seed):
            return reply
        forged = attack.forge(reply.payload[UPDATE], self.run.recipe.seed, "forge", reply.client, order.round)
        return replace(reply, payload={**reply.payload, UPDATE: forged})

    def _before(self, order: Order, begun: Begun) -> float:
        """The mean loss of the order's weights over the client's training examples."""
        self._load(order.weights)
        state = self._state(begun.data, "train")
        return float(state["loss"] / state["weight"])

    # --- judging ---------------------------------------------------------------------------------------------------

    def judge(self, order: Order, chunk: Sequence[Work]) -> Judged:
        """The shared model, and where there are any the clients' own, on what these clients hold out."""
        judged, fine_tune, pairs = Judged(), self.run.evaluate.fine_tune_epochs, list[tuple[Work, Data]]()
        for work in chunk:
            try:
                data = self.setting.clients.data(work.client, seed_of(self.run.recipe.seed, "judge", work.client))
            except Exception as error:  # noqa: BLE001 - as in training
                judged.failed.append(Told.failed(work.client, error))
            else:
                held_out, policy = len(data.splits["validation"]), self.run.statistics
                if policy and 0 < held_out < policy.least_count:
                    judged.withheld.append(work.client)
                elif held_out:
                    pairs.append((work, data))
        tuned = self._fine_tuned(order, pairs, fine_tune) if fine_tune else {}
        for work, data in pairs:
            mine = _under(STRATEGY, work.mine)
            start, own = self._own_start(order, mine), tuned.get(work.client, mine.get("personal"))
            try:
                found = self._verdict("shared", work.client, data, order.weights if start is None else start)
                if own is not None:
                    found.merge(self._verdict("personal", work.client, data, own))
                judged.merge(found)
            except Exception as error:  # noqa: BLE001 - as in training
                judged.failed.append(Told.failed(work.client, error))
        return judged

    def _fine_tuned(self, order: Order, pairs: Sequence[tuple[Work, Data]], epochs: float) -> dict[int, Tensor]:
        jobs = []
        for work, data in pairs:
            shard = training_only(data).shard()
            start = self._own_start(order, _under(STRATEGY, work.mine))
            begun = Begun(work, data, shard, self.steps(shard, epochs))
            jobs.append(self._made(begun, "fine-tune", order.round, start, Pull()))
        return _vectors(jobs, self._trained(order, jobs))

    def _verdict(self, model: str, client: int, data: Data, vector: Tensor) -> Judged:
        self._load(vector)
        state, metrics = self._state(data, "validation"), self._metrics(data)
        if policy := self.run.statistics:
            state = policy.judged(metrics, state, self.run.recipe.seed, "judge", client)
        verdict = Verdict(client, model, len(data.splits["validation"]), metrics.compute(state))
        return Judged({model: state}, [verdict])

    def _load(self, vector: Tensor) -> None:
        """Gives the task that judges these weights [D], if it has not got them already."""
        if self._loaded is not vector:
            self.frame.put(self.task, vector)
            self._loaded = vector

    def _state(self, data: Data, split: str) -> State:
        shard = data.shard()
        batches = shard.held_out(split, self.run.recipe.train.evaluate_batch)
        return evaluate(self.task, batches, self._metrics(data), self.runtime, self.cohort.learner.precision)

    def _metrics(self, data: Data) -> Metrics:
        return metrics_of(self.run.recipe, data.shard())


def _vectors(jobs: Sequence[Job], trained: Sequence[Trained | Told]) -> dict[int, Tensor]:
    """The weights [D] of the jobs that ended well, by client."""
    pairs = zip(jobs, trained, strict=True)
    return {int(job.name): one.vector for job, one in pairs if isinstance(one, Trained) and not one.error}


def training_only(data: Data) -> Data:
    """The same data with nothing held out: training must not judge by it."""
    validation = data.splits["validation"]
    if not len(validation):
        return data
    return replace(data, splits={**data.splits, "validation": data.splits["test"]})


def _under(prefix: str, vectors: Vectors) -> Vectors:
    return {name.removeprefix(prefix): vector for name, vector in vectors.items() if name.startswith(prefix)}


def _over(prefix: str, vectors: Vectors) -> Vectors:
    return {prefix + name: vector for name, vector in vectors.items()}


# --- as items of a pool --------------------------------------------------------------------------------------------

_SITES: dict[str, Site] = {}  # of this process: the one of the newest run


def site_of(setting: Setting) -> Site:
    """This process's site for a run; made once."""
    if setting.key not in _SITES:
        _SITES.clear()
        _SITES[setting.key] = Site(setting)
    return _SITES[setting.key]


def train_chunk(setting: Shared[Setting], order: Shared[Order], chunk: Sequence[Work]) -> Partial:
    """A pool worker's part of a round."""
    return site_of(setting.get()).train(order.get(), chunk)


def judge_chunk(setting: Shared[Setting], order: Shared[Order], chunk: Sequence[Work]) -> Judged:
    """A pool worker's part of an evaluation."""
    return site_of(setting.get()).judge(order.get(), chunk)
