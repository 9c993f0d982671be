"""The server: round by round it orders, adds up what comes back, and moves. The same for every engine.

Between two checkpoints everything is a function of the weights, the strategy's vectors and the round's number, so a
run that was killed goes on from its last checkpoint as if nothing had happened.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from core.errors import ConfigError, DataError, WorkerError
from core.learner import Saver
from core.storage.checkpoint import Snapshot
from core.train import due
from federated.barren import Barren
from federated.clock.schedule import Plan
from federated.engine import Engine
from federated.exchange import UPDATE, Order, Reply, Total, Vectors, stacked
from federated.federation import Federation
from federated.folding import Folding, Totals
from federated.intake import Told, Work, must_collect
from federated.judging import judge
from federated.keeping import Keeping, Kept
from federated.strategies.robust.rule import Robust
from federated.telling import tell_round

Record = dict[str, Any]


@dataclass
class State:
    """All that changes from round to round on the server. pending: sums for rounds that are still to come; counted: how
    many replies have counted in all."""

    round: int
    weights: Tensor
    server: Vectors
    pending: Totals = field(default_factory=dict)
    counted: int = 0


@dataclass(frozen=True)
class Watch:
    """Who looks on: `report` gets each record; `should_stop` is asked between rounds."""

    report: Callable[[Record], None] = lambda record: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Served:
    """What became of a run: the weights [D] after `rounds` rounds, and the last evaluation."""

    weights: Tensor
    rounds: int
    ended: Literal["done", "stopped"]
    simulated_s: float
    evaluation: Record


class Server:
    """Serves one federation on an engine. With `checkpoints` and `keeping` it can be killed and go on."""

    def __init__(
        self,
        federation: Federation,
        engine: Engine,
        watch: Watch | None = None,
        checkpoints: Saver | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        self.federation, self.run, self.engine = federation, federation.run, engine
        self.strategy, self.frame = federation.run.strategy, federation.frame
        self.watch, self.checkpoints, self.keeping = watch or Watch(), checkpoints, keeping or Keeping()
        self.collects = must_collect(self.run)
        self.saved: list[int] = []  # rounds of the checkpoints that are kept, rising
        self.simulated_s = 0.0
        self.state = self._restored() or State(0, federation.first, self.strategy.begin(federation.first, self.frame))
        self.barren = Barren(self.state.counted)
        self.keeping.rewind(self.state.round)

    def serve(self) -> Served:
        """All rounds that are left, or until it is asked to stop.

        Raises WorkerError if the model diverges, or no reply counts.
        """
        evaluation: Record = {}
        for plan in self.federation.schedule.plans(self.state.round + 1):
            if self.watch.should_stop():
                break
            self._round(plan)
            self.simulated_s = plan.ends_s
            if self._is_due(self.run.evaluate.every):
                evaluation = self._judge()
            if self.checkpoints and self._is_due(self.run.checkpoint_every):
                self._save()
        done = self.state.round >= self.run.rounds
        if done and not evaluation:  # it was killed after its last round
            evaluation = self._judge()
        if not done and self.checkpoints and self.state.round not in [0, *self.saved[-1:]]:
            self._save()
        return Served(self.state.weights, self.state.round, "done" if done else "stopped", self.simulated_s, evaluation)

    def answer(self, round: int, client: int) -> Told:
        """What a client tells of its work in a round, all rounds before which are done if they are not.

        Its whole chunk is trained, as then, so that it is the same to the last bit. Raises ConfigError if it was not
        asked in that round.
        """
        for plan in self.federation.schedule.plans(self.state.round + 1):
            if plan.round < round:
                self._round(plan)
                continue
            chunks = self.federation.chunks(works_of(plan))
            own = {number: chunk for number, chunk in chunks.items() if any(work.client == client for work in chunk)}
            if not own:
                asked = ", ".join(str(job.client) for job in plan.jobs[:10])
                raise ConfigError(f"client: {client} did not work in round {round}; clients {asked}, ... did")
            ((_, partial),) = self.engine.train(self._order(round), Kept(own, self.keeping))
            return next(told for told in partial.told if told.client == client)
        raise ConfigError(f"round: there is no round {round} to do again")

    def _judge(self) -> Record:
        order = self._order(self.state.round)
        return judge(self.federation, self.engine, order, self.keeping, self.watch.report)

    def _is_due(self, every: int) -> bool:
        return due(self.state.round, every, self.run.rounds)

    def _order(self, round: int) -> Order:
        return Order(round, self.state.weights, self.strategy.extra(self.state.server))

    # --- a round ---------------------------------------------------------------------------------------------------

    def _round(self, plan: Plan) -> None:
        began, state = time.perf_counter(), self.state
        chunks = Kept(self.federation.chunks(works_of(plan)), self.keeping)
        folding, told, replies = Folding(len(chunks)), list[Told](), list[Reply]()
        for number, partial in self.engine.train(self._order(plan.round), chunks):
            folding.take(number, partial.totals)
            told += partial.told
            replies += partial.replies
            for client, vectors in partial.kept.items():
                self.keeping.put(client, plan.round, vectors)
        for round, total in folding.result().items():
            state.pending[round] = state.pending[round].merge(total) if round in state.pending else total
        total, too_few = state.pending.pop(plan.round, Total()), ""
        if self.collects:
            total, too_few = self._combined(plan.round, replies)
        self._step(plan.round, total)
        self._tell(plan, sorted(told, key=lambda one: one.client), total, time.perf_counter() - began)
        self.barren.look(plan.round, told, plan.lost, total.count, too_few)
        state.counted = self.barren.counted
        if plan.round == self.run.rounds:  # before anything is judged or saved
            self.barren.require_any(plan.round)

    def _combined(self, round: int, replies: Sequence[Reply]) -> tuple[Total, str]:
        """One update of all replies, in the order of their clients; nothing if there are too few for the rule, and what
        there is to say of that."""
        replies = self._colluded(round, sorted(replies, key=lambda reply: reply.client))
        strategy, total = self.strategy, Total()
        if not isinstance(strategy, Robust):
            for reply in replies:
                total.add(reply)
            return total, ""
        if len(replies) < strategy.needs():
            said = f"round {round}: {len(replies)} good replies, {strategy.kind} needs {strategy.needs()}"
            self._warn(f"{said}; the model stays")
            return total, said
        updates, weights = stacked(replies)
        total.add(Reply(0, 1.0, {UPDATE: strategy.combine(updates, weights, self.state.server)}))
        total.count = len(replies)
        return total, ""

    def _warn(self, message: str) -> None:
        self.watch.report({"event": "warning", "message": message})

    def _colluded(self, round: int, replies: list[Reply]) -> list[Reply]:
        """The same, where attackers have agreed on what to send, having seen what the honest clients do.

        Where there is no honest reply, they go by their own updates, as attackers do that see no others (arXiv
        1902.06156, section 3.2).
        """
        attack, everyone = self.run.attack, len(self.federation.clients)
        if attack is None or not attack.is_colluding:
            return replies
        hostile = {r.client for r in replies if attack.is_attacker(r.client, everyone, self.run.recipe.seed)}
        honest = [reply for reply in replies if reply.client not in hostile]
        if not hostile:
            return replies
        known = stacked(honest or replies)[0]
        forged = attack.forge_together(known, len(honest), len(hostile))
        if not honest:
            is_own = len(known) == 1 and torch.equal(forged, known[0])  # one update has no deviation to hide in
            what = "a single attacker has nothing to forge from" if is_own else "they forge from their own updates"
            self._warn(f"round {round}: no honest client has replied, only attackers; {what}")
        return [replace(r, payload={**r.payload, UPDATE: forged}) if r.client in hostile else r for r in replies]

    def _step(self, round: int, total: Total) -> None:
        """Moves the model, if anything came back that counts."""
        state = self.state
        if total.weight > 0:
            clients = len(self.federation.clients)
            weights, server = self.strategy.step(state.weights, state.server, total, clients)
            if not bool(torch.isfinite(weights).all()):
                raise WorkerError(
                    f"federation: the model is not finite after round {round}; lower strategy.server_lr or "
                    "optimizer.lr, or set max_norm"
                )
            state.weights, state.server = weights, server
        state.round = round

    def _tell(self, plan: Plan, told: Sequence[Told], total: Total, seconds: float) -> None:
        late = sum(one.reason == "too late" for one in plan.lost)
        faults = sum(one.fault is not None for one in told)
        numbers: Record = {"clients": total.count, "failed": faults + len(plan.lost) - late}
        if late:
            numbers["late"] = late
        numbers["bytes_up"] = sum(one.bytes_up for one in told)
        numbers["bytes_down"] = self.federation.bytes_down * (len(plan.jobs) + len(plan.lost))
        if self.run.devices is not None:
            numbers["simulated_s"] = round(plan.ends_s, 3)
        place, lost = {"round": plan.round, "rounds": self.run.rounds}, [[one.client, one.reason] for one in plan.lost]
        tell_round(place, told, {**numbers, "seconds": seconds}, lost, self.watch.report)

    # --- saved and restored ----------------------------------------------------------------------------------------

    def _save(self) -> None:
        assert self.checkpoints is not None
        state = self.state
        self.checkpoints.wait()  # what the one before needs is removed only when it is on the disk
        if self.saved:
            self.keeping.settle(self.saved[0])
        pending = {f"{round}.{name}": v for round, total in state.pending.items() for name, v in total.sums.items()}
        counts = {str(round): [total.weight, total.count] for round, total in state.pending.items()}
        tensors = {"model": {"weights": state.weights}, "server": state.server, "pending": pending}
        numbers = {"pending": counts, "simulated_s": self.simulated_s, "counted": state.counted}
        self.checkpoints.save(Snapshot(state.round, tensors, numbers))
        self.saved = [*self.saved, state.round][-self.run.keep_last :]

    def _restored(self) -> State | None:
        if self.checkpoints is None:
            return None
        snapshot, rejected = self.checkpoints.load_latest()
        for path, reason in rejected:
            self.watch.report({"event": "checkpoint_rejected", "checkpoint": path.name, "reason": reason})
        if snapshot is None:
            if rejected:
                path, reason = rejected[0]
                raise DataError(f"resume: no checkpoint is whole ({reason}); remove {path.parent} to start anew")
            return None
        weights = snapshot.tensors["model"]["weights"]
        if len(weights) != self.frame.size:
            raise DataError("resume: the checkpoint is of another model")
        pending: Totals = {}
        for key, (weight, count) in snapshot.state["pending"].items():
            total = pending[int(key)] = Total()
            total.weight, total.count = weight, count
        for name, vector in snapshot.tensors["pending"].items():
            key, _, own = name.partition(".")
            pending[int(key)].sums[own] = vector
        self.saved, self.simulated_s = [snapshot.step], snapshot.state["simulated_s"]
        return State(snapshot.step, weights, snapshot.tensors["server"], pending, snapshot.state["counted"])


def works_of(plan: Plan) -> list[Work]:
    """What the clients of a round are asked for."""
    return [Work(job.client, job.counts_in) for job in plan.jobs]
