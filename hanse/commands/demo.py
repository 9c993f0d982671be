"""`hanse demo`: the main job on real data. One recipe, here and on two Ray workers, with the same weights to the last
bit."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import DataError, WorkerError
from core.execute import Summary
from core.storage.artifact import read_weights
from hanse import launch
from hanse.commands.train import headline, reference
from hanse.console import Console
from hanse.format import number
from hanse.interrupt import INTERRUPTED

TEXT_CONFIG = "configs/train/gpt.yaml"  # what to look at next
CONFIG = Path("configs/train/digits.yaml")
WORKERS = 2
# as many shards as workers make the sums the same on both; a GPU would not add up in the same order twice
SAME = {"train.shards": WORKERS, "device": "cpu"}


def run(json: bool, quiet: bool) -> int:
    """Exit code 0 only if both runs end well and their weights are the same to the last bit."""
    file = _config_file()
    results: dict[str, tuple[Path, Summary, float]] = {}
    for place, workers in (("in this process", 0), (f"on {WORKERS} Ray workers", WORKERS)):
        train = launch.parse_train(file, {"workers": workers, "cpus_per_worker": _cpus_per_worker(), **SAME})
        with Console.choose(json, quiet) as console:
            console.header(f"hanse train {file} workers={workers}", {"digits": f"8x8 images of them, learned {place}"})
            began = time.perf_counter()
            path, summary = launch.train(train, console)
            if summary["ended"] == "stopped":
                console.end(path, {"stopped after step": summary["steps"]}, ["hanse demo"])
                return INTERRUPTED
            results[place] = (path, summary, time.perf_counter() - began)
    with Console.choose(json, quiet) as console:
        _conclude(results, console)
    return 0


def _conclude(results: Mapping[str, tuple[Path, Summary, float]], console: Console) -> None:
    """The table of both runs, then the verdict. Raises WorkerError if the weights differ."""
    rows: list[dict[str, object]] = []
    for place, (path, summary, seconds) in results.items():
        shown = {f"{summary['split']} {name}": number(value) for name, value in headline(summary).items()}
        rows.append({"where": place, **shown, "wall": f"{seconds:.1f} s", "run": path.name})
    (here, summary, _), (there, other, _) = results.values()
    console.rows("demo", rows)
    if summary["weights_sha256"] != other["weights_sha256"]:
        difference = largest_difference(here / "model", there / "model")
        raise WorkerError(f"demo: the weights differ by {difference:.1e} and should not at all; see {here} and {there}")
    found: dict[str, Any] = {summary["split"]: headline(summary), "weights": "the same to the last bit"}
    name = reference(here)
    more = [f"hanse evaluate {name}", f"hanse runs compare {name} {reference(there)}", f"hanse train {TEXT_CONFIG}"]
    console.end(here, found, more)


def largest_difference(a: Path, b: Path) -> float:
    """The largest |a - b| over all weights of two model directories, relative to the largest weight of the tensor."""
    ours, theirs = read_weights(a), read_weights(b)
    if ours.keys() != theirs.keys():
        raise DataError(f"{b}: holds other tensors than {a}")
    differences = [((ours[n] - theirs[n]).abs().max() / ours[n].abs().max().clamp_min(1e-12)).item() for n in ours]
    return max(differences)


def _cpus_per_worker() -> float:
    """On a machine with one processor the workers share it."""
    return min(1.0, (os.cpu_count() or 1) / WORKERS)


def _config_file() -> Path:
    """In the current directory as in a clone; else where this package lies."""
    beside = Path(__file__).resolve().parents[2] / CONFIG
    for file in (CONFIG, beside):
        if file.is_file():
            return file
    raise DataError(f"{CONFIG}: not found; run the demo inside a clone of Hanse")
