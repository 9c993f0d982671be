"""Federated evaluation: clients judge on what they hold out and send metric states, which add, so that F1 or AUC are
those of all their examples together; and how differently the clients fare."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from core.data import Data
from core.metrics import Metrics, higher_is_better
from core.runtime import Runtime
from core.train import evaluate, metrics_of
from federated.attacks import Backdoor
from federated.clock.sampling import draw
from federated.engine import Engine
from federated.exchange import Order
from federated.federation import Federation
from federated.intake import Work
from federated.keeping import Keeping, Kept
from federated.site import Judged, Verdict

Record = dict[str, Any]
QUANTILES = (0.1, 0.5, 0.9)
SPLITS = {"shared": "clients", "personal": "personal"}  # what a record's `split` says of a model


def judge(
    federation: Federation, engine: Engine, order: Order, keeping: Keeping, report: Callable[[Record], None]
) -> Record:
    """Asks the clients, and judges on the server's own held-out examples too, where it has any. All of it is
    reported."""
    found: Record = {}
    place = {"round": order.round, "rounds": federation.run.rounds}
    central, _ = central_metrics(federation, order, "validation")
    if central:
        found["validation"] = central
        report({**place, "split": "validation", **central})
    backdoor = _backdoor(federation, order)
    if backdoor:
        found["backdoor"] = backdoor
        report({**place, "split": "backdoor", **backdoor})
    return found | tell(federation, _asked(federation, engine, order, keeping), order.round, report)


def tell(federation: Federation, judged: Judged, round: int, report: Callable[[Record], None]) -> Record:
    """Reports what clients have judged in a round. By split: their metrics together, and how they spread."""
    found: Record = {}
    place, metrics = {"round": round, "rounds": federation.run.rounds}, metrics_for(federation)
    for told in judged.failed:
        report({"event": "client_failed", "round": round, "client": told.client, **told.reason})
    if judged.withheld:
        said = f"round {round}: clients that withhold their evaluation, for they hold out too few examples"
        report({"event": "withheld", "message": said, "clients": sorted(judged.withheld)})
    for model, state in judged.states.items():
        own = sorted((v for v in judged.verdicts if v.model == model), key=lambda v: v.client)
        values, spread = metrics.compute(state), spread_of(own)
        found[SPLITS[model]] = {"metrics": values, "spread": spread}
        report({**place, "split": SPLITS[model], **values, "spread": spread})
    return found


def central_metrics(federation: Federation, order: Order, split: str) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of the order's weights on a split that the server holds, and their details; empty where it holds
    none."""
    data = federation.central
    if data is None or not data.sizes.get(split):
        return {}, {}
    return _measured(federation, order, data, split)


def _measured(federation: Federation, order: Order, data: Data, split: str) -> tuple[dict[str, float], dict[str, Any]]:
    recipe = federation.run.recipe
    task = federation.task
    federation.frame.put(task, order.weights)
    task.to(federation.device)
    shard = data.shard()
    metrics = metrics_of(recipe, shard)
    state = evaluate(task, shard.held_out(split, recipe.train.evaluate_batch), metrics, Runtime(federation.device))
    task.to("cpu")
    return metrics.compute(state), metrics.details(state)


def _backdoor(federation: Federation, order: Order) -> dict[str, float]:
    """How often a backdoor opens: the accuracy on the server's held-out examples with its trigger and its label."""
    attack, data = federation.run.attack, federation.central
    if not isinstance(attack, Backdoor) or data is None or not data.sizes["validation"]:
        return {}
    metrics, _ = _measured(federation, order, attack.triggered(data), "validation")
    return {name: metrics[name] for name in ("accuracy", "loss")}


def spread_of(verdicts: Sequence[Verdict]) -> dict[str, dict[str, float]]:
    """By metric: mean, standard deviation, quantiles and the worst over clients, each of which counts once."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for verdict in verdicts for name in verdict.metrics):
        pairs = [(v.metrics[name], v.client) for v in verdicts if name in v.metrics]
        values = np.array([value for value, _ in pairs])
        worst = (min if higher_is_better(name) else max)(pairs)
        found[name] = {
            "clients": len(pairs),
            "mean": float(values.mean()),
            "std": float(values.std()),
            **{f"q{round(100 * q)}": float(np.quantile(values, q)) for q in QUANTILES},
            "worst": worst[0],
            "worst_client": worst[1],
        }
    return found


def _asked(federation: Federation, engine: Engine, order: Order, keeping: Keeping) -> Judged:
    """Merged metric states by model, and the verdicts of single clients."""
    run, everyone = federation.run, len(federation.clients)
    if not int(federation.clients.held_out_sizes.sum()):
        return Judged()
    count = run.evaluate.clients
    asked: Sequence[int] = range(everyone)
    if count is not None and count < everyone:
        asked = draw(everyone, count, None, run.recipe.seed, "judges", order.round)
    chunks: Mapping[int, Sequence[Work]] = federation.chunks([Work(client, order.round) for client in asked])
    if run.strategy.judges_own:
        chunks = Kept(chunks, keeping)
    found = dict(engine.judge(order, chunks))
    judged = Judged()
    for number in sorted(found):  # sums in a fixed order are the same on every engine
        judged.merge(found[number])
    return judged


def metrics_for(federation: Federation) -> Metrics:
    """What clients measure."""
    return metrics_of(federation.run.recipe, federation.clients.data(0, 0).shard())
