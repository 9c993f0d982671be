"""What is shown of many members that train at once, or one after the other: one line for all of them.

Their records go into metrics.jsonl one by one; a person sees the mean, how many have ended, and each member's score.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from core.runtime import Record
from hanse.format import HEADLINES, labeled

SHOWN = ("loss", *HEADLINES)  # of held-out data


class Crowd:
    """Takes the records of `members` members that train `steps` steps each; passes on what is worth showing.

    `ended` of them have ended before; `reached`: the steps that others have made before, by name.
    """

    def __init__(
        self,
        members: int,
        ended: int,
        steps: int,
        every: int,
        show: Callable[[Record], None],
        reached: Mapping[str, int],
    ) -> None:
        self.members, self.ended, self.steps, self.every, self.show = members, ended, steps, every, show
        self.at = dict(reached)
        self.before, self.began = ended * steps + sum(reached.values()), 0.0
        self.train: dict[str, Record] = {}
        self.held_out: dict[str, Record] = {}
        self.shown = 0

    def __call__(self, record: Record) -> None:
        """One more record."""
        name, event = record.get("member"), record.get("event")
        if event in ("member_done", "member_failed"):
            self.train.pop(str(name), None)
            self.at.pop(str(name), None)
            self.ended += 1
        if event == "member_done":
            self.show({"event": event, "message": f"{name}  {record['split']} {score_of(record)}"})
        elif name is None or event:
            self.show(record)
        elif record["split"] == "train":
            self.began = self.began or time.monotonic()
            self.train[name], self.at[name] = record, record["step"]
            self._progress()
        elif record["split"] == "validation":
            self.held_out[name] = record

    def _progress(self) -> None:
        steps = sum(self.at.values()) + self.ended * self.steps
        step = steps // self.members
        if self.shown and step // self.every == self.shown // self.every:
            return
        is_first, self.shown = not self.shown, max(1, step)
        if self.held_out:
            self.show({"step": self.shown, "split": "validation", **means(self.held_out, SHOWN)})
            self.held_out = {}
        shown: Record = {
            "step": self.shown,
            "steps": self.steps,
            "split": "train",
            **means(self.train, ("loss", "lr", "grad_norm")),
            "memory_bytes": max(record["memory_bytes"] for record in self.train.values()),
            "members": f"{self.ended}/{self.members}",
        }
        if len(self.train) == 1:
            ((name, record),) = self.train.items()
            shown["of"] = f"{name} at step {record['step']:,}"  # the step that leads the line is the mean of all
        if not is_first:  # whose step also warms up
            done, seconds = max(1, steps - self.before), time.monotonic() - self.began
            shown["eta_s"] = (self.members * self.steps - steps) * seconds / done
        self.show(shown)


def means(records: Mapping[str, Record], names: tuple[str, ...]) -> dict[str, float]:
    """The mean of each of these numbers over the members that have it."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        values = [record[name] for record in records.values() if isinstance(record.get(name), int | float)]
        if values:
            found[name] = statistics.fmean(values)
    return found


def score_of(record: Mapping[str, Any]) -> str:
    """`accuracy 0.983  loss 0.06`."""
    name = next((name for name in HEADLINES if name in record), "loss")
    return "  ".join(labeled(key, record[key]) for key in dict.fromkeys((name, "loss")) if key in record)
