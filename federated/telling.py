"""What a round says: an event for each client that failed, a line of numbers, and a line of its clients."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from federated.intake import Told

Record = dict[str, Any]


def tell_round(
    place: Record,
    told: Sequence[Told],
    numbers: Record,
    lost: Sequence[Sequence[Any]],
    report: Callable[[Record], None],
) -> None:
    """place: `round` and `rounds`; numbers: what the line says beside the loss; lost: [client, reason] of those who
    were asked and never worked."""
    for one in told:
        if one.fault:
            event = "client_failed" if one.trace else "quarantined"
            report({"event": event, "round": place["round"], "client": one.client, **one.reason})
    good = [one for one in told if not one.fault]
    record = {**place, "split": "train"}
    if examples := sum(one.examples for one in good):
        record["loss"] = sum(one.loss * one.examples for one in good) / examples
    report({**record, **numbers, "time": round(time.time(), 3)})
    columns = {name: [getattr(one, name) for one in told] for name in ("client", "loss", "examples", "norm")}
    report({"round": place["round"], "split": "cohort", "cohort": columns, "lost": lost})
