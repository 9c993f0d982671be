"""Runs a federation again and again, killed with -9 at another point each time and then gone on with, in processes of
its own.

    python -m tests.federated.kill_points DIRECTORY     one JSON line a point: which, what was written there, how many
    there are, the weights' SHA-256

A point is a moment at which something is about to be written, or has just been: a record, a client's vectors, a
checkpoint. One of each kind is tried, early and late ones; with HANSE_SWEEP=N, N of each.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core.storage.checkpoint import Checkpointer
from core.storage.store import RunDirectory
from federated.keeping import Keeping
from hanse.console import Console
from hanse.federate import parse_federate, simulate
from tests.fuzz.hostile import SWEEP

CONFIG: dict[str, Any] = {
    "name": "killed",
    "data": {"kind": "table", "path": "bundled:wine"},
    "model": {"kind": "mlp", "hidden": [8], "dropout": 0.2},
    "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
    "train": {"batch_size": 8},
    "clients": 8,
    "cohort": 4,
    "rounds": 7,
    "strategy": {"kind": "scaffold", "momentum": 0.9},
    "transforms": [{"kind": "int8"}],
    "evaluate": {"every": 3},
    "checkpoint_every": 2,
}
WATCHED = [(RunDirectory, "record"), (Keeping, "put"), (Keeping, "settle"), (Checkpointer, "save")]


def main(root: Path) -> None:
    """An undisturbed run tells which points there are."""
    points, sound = in_a_process(lambda: run(root / "sound", {}, kill_at=None))
    report(-1, points, sound)
    for at in drawn(points, SWEEP):
        where = root / f"killed-{at}"
        in_a_process(lambda at=at, where=where: run(where, {}, kill_at=at))  # type: ignore[misc]
        assert not (where / "summary.json").exists(), "it was killed before its end"
        _, weights = in_a_process(lambda where=where: run(where, {"resume": True}, kill_at=None))  # type: ignore[misc]
        report(at, points, weights)


def drawn(points: list[str], of_each: int) -> list[int]:
    """Where to kill, counted from 1: so many of each kind, spread over the run, other kinds at other times."""
    kinds, found = sorted(set(points)), set[int]()
    for place, kind in enumerate(kinds):
        there = [at for at, point in enumerate(points, start=1) if point == kind]
        step = len(there) / of_each
        found |= {there[int((number + (place + 0.5) / len(kinds)) * step)] for number in range(of_each)}
    return sorted(found)


def run(where: Path, changes: dict[str, Any], kill_at: int | None) -> tuple[list[str], str]:
    """(the points passed, SHA-256 of the weights)."""
    torch.set_num_threads(1)
    passed = list[str]()

    def tick(point: str) -> None:
        passed.append(point)
        if len(passed) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            tick(f"before {original.__qualname__}")
            result = original(*arguments, **named)
            tick(f"after {original.__qualname__}")
            return result

        return watched

    for cls, name in WATCHED:
        setattr(cls, name, around(getattr(cls, name)))
    with Console.choose(quiet=True) as console:
        _, summary = simulate(parse_federate({**CONFIG, "run_dir": str(where), **changes}, {}), console)
    return passed, summary["weights_sha256"]


def in_a_process(work: Callable[[], tuple[list[str], str]]) -> tuple[list[str], str]:
    """A fork, before torch has started threads here; ([], "") if it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the end of the process
        try:
            os.write(writing, json.dumps(work()).encode())
        except BaseException:  # noqa: BLE001 - the child must not go on as its parent
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(1)
    if not said:
        return [], ""
    passed, weights = json.loads(said)
    return passed, weights


def report(at: int, points: list[str], weights: str) -> None:
    point = points[at - 1] if at > 0 else ""
    print(json.dumps({"at": at, "point": point, "points": len(points), "weights": weights}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
