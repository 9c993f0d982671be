"""A federation, ready to run: clients with their data, the model's frame, the schedule, and what replies must look
like."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from core.data import Data, load
from core.errors import ConfigError
from core.estimate import require_memory
from core.learner import prepare
from core.population.executor import executor_for, require_stackable, rows_at_once
from core.population.frame import Frame
from core.runtime import Runtime, choose_device
from core.task import Task
from core.train import require_batches
from federated import support
from federated.clients import Clients, PartitionedClients
from federated.clock.schedule import Asynchronous, Schedule
from federated.exchange import Order, Update
from federated.inspection import Expected, shapes
from federated.intake import Work
from federated.partition import Partition, make_partition
from federated.run import FederateRun
from federated.site import Setting, training_only
from federated.transforms.chain import bytes_up

CHUNK_LOOP = 5  # clients that are summed up together where they train one after the other
MOST_CHUNKS = 32  # of clients one after the other: the fewer, the fewer sums wait for their neighbor


@dataclass(frozen=True)
class Federation:
    """One run with its clients. `central` is what the server itself holds to judge by: validation and test split."""

    run: FederateRun
    clients: Clients
    central: Data | None = None
    weights: dict[str, Tensor] | None = None  # that training begins with, by the network's names
    partition: Partition | None = None  # of the central data's training split, where it was dealt out

    @classmethod
    def of(cls, run: FederateRun, weights: dict[str, Tensor] | None = None) -> "Federation":
        """Loads the recipe's data and deals its training split out. Raises ConfigError, DataError."""
        support.check(run)
        partition, data = deal(run)
        require_memory(run.recipe, data.spec)
        clients = PartitionedClients(data, partition, run.evaluate.held_out, run.recipe.seed)
        return cls(run, clients, data, weights, partition)

    def __post_init__(self) -> None:
        self.run.strategy.require(self.cohort)
        judges = self.run.evaluate.clients
        if judges is not None and judges > len(self.clients):
            raise ConfigError(
                f"evaluate.clients: {judges} are to judge, and there are {len(self.clients)} clients; lower it, or "
                "write null to ask all"
            )
        self._require_batches()
        self.run.recipe.schedule.factor(0, self.run.rounds)  # refuses a warmup longer than the run
        if self.run.attack:
            self.run.attack.require(self.clients.preprocess, len(self.clients))
        self.schedule  # noqa: B018 - refuses a cohort that is larger than the population

    def _require_batches(self) -> None:
        """Refuses a smallest client whose batches are too small for batch statistics."""
        sizes, recipe = self.clients.sizes, self.run.recipe
        known = sizes.where(sizes > 0, sizes.max())  # a node with its own data knows the size of its own client alone
        rows = min(int(known.min()), recipe.train.batch_size)
        require_batches(recipe, self.clients.spec, rows, f"clients: client {int(known.argmin())}")

    @property
    def cohort(self) -> int:
        """Replies that a round waits for."""
        return self.run.cohort or len(self.clients)

    @cached_property
    def device(self) -> torch.device:
        """Where clients train."""
        return choose_device("cpu" if self.run.engine == "pool" else self.run.device)

    @cached_property
    def task(self) -> Task:
        """A model at its beginning, on the CPU."""
        return prepare(self.run.recipe, self.clients.spec, self.weights)

    @cached_property
    def frame(self) -> Frame:
        """How it lies in a vector."""
        return Frame.around(self.task, self.run.recipe)

    @cached_property
    def first(self) -> Tensor:
        """The weights [D] of the first round."""
        return self.frame.vector(self.task)

    @cached_property
    def expected(self) -> Expected:
        """What a reply must look like once it has been read."""
        strategy, frame = self.run.strategy, self.frame
        order = Order(1, self.first, strategy.extra(strategy.begin(self.first, frame)))
        sample = Update(0, torch.zeros(frame.size), 1, 1, 0.0, self.run.recipe.optimizer.lr, 0.0)
        reply, _ = strategy.reply(sample, order, {}, frame)
        return Expected(shapes(reply.payload), self.run.max_norm, self.run.max_weight)

    @cached_property
    def setting(self) -> Setting:
        """What sites are made of."""
        run, recipe, spec = self.run, self.run.recipe, self.clients.spec
        executor = executor_for(recipe, spec, self.device) if run.backend == "auto" else run.backend
        if executor == "vmap":
            shard = training_only(self.clients.data(0, 0)).shard()
            try:
                require_stackable(recipe, shard, Runtime(self.device))
            except ConfigError:
                if run.backend == "vmap":
                    raise
                executor = "loop"
        frozen = self.weights if self.weights and recipe.freeze else None
        return Setting(uuid.uuid4().hex, run, self.clients, executor, self.expected, frozen)

    @cached_property
    def schedule(self) -> Schedule:
        """Who trains when."""
        run = self.run
        asynchronous = None
        if run.is_asynchronous:
            asynchronous = Asynchronous(run.strategy.buffer, run.strategy.concurrency)  # type: ignore[union-attr]
        return Schedule(
            clients=len(self.clients),
            cohort=self.cohort,
            rounds=run.rounds,
            seed=run.recipe.seed,
            work=self._work,
            bytes_down=self.bytes_down,
            bytes_up=self.bytes_up,
            devices=run.devices,
            asynchronous=asynchronous,
        )

    @cached_property
    def bytes_down(self) -> int:
        """Of one order."""
        extra = self.run.strategy.extra(self.run.strategy.begin(self.first, self.frame))
        return sum(vector.nbytes for vector in [self.first, *extra.values()])

    @property
    def bytes_up(self) -> int:
        """Of one reply."""
        wanted = self.expected.vectors
        names = [name for name, (shape, _) in wanted.items() if shape]
        return bytes_up(self.run.transforms, self.frame, names, len(wanted) - len(names))

    def _work(self, client: int) -> float:
        run = self.run
        if run.local_steps is not None:
            return float(run.local_steps * run.recipe.train.batch_size)
        return float(self.clients.sizes[client]) * run.local_epochs

    def chunks(self, works: Sequence[Work]) -> dict[int, tuple[Work, ...]]:
        """The work of a round in parts, by their number: those with about as much to do together.

        It depends on the works alone, never on who will do them.
        """
        sizes = self.clients.sizes[[work.client for work in works]].tolist() if works else []
        ordered = [work for _, work in sorted(zip(sizes, works, strict=True), key=lambda one: (-one[0], one[1].client))]
        size = max(CHUNK_LOOP, -(-len(works) // MOST_CHUNKS))
        if self.setting.executor == "vmap":
            size = rows_at_once(self.frame.size)
        parts = [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
        return dict(enumerate(parts))


def deal(run: FederateRun) -> tuple[Partition, Data]:
    """Which client has which of the training examples, and all the data. Raises ConfigError, DataError."""
    recipe = run.recipe
    data = load(recipe.data, recipe.goal.target, recipe.seed)
    return make_partition(run.partition, data, recipe.data, run.clients, recipe.seed), data
