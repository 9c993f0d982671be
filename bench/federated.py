"""Federated simulation beside Flower's own and pfl-research: time per round on four workloads, idle clients, memory,
and the time to the first round.

pfl-research needs an environment of its own (`pip install torch==2.13.0`, then `pfl[pytorch]==0.6.0`): HANSE_BENCH_PFL
names its Python; without it those rows are left out.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.measure import alternate, emit

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "bench" / "peers"
PFL = os.environ.get("HANSE_BENCH_PFL", "")
Line = dict[str, Any]


def run() -> None:
    small("lr-mnist", pairs=3, whole=True)
    small("mlp", pairs=3)
    on_two_workers("femnist-cnn", pairs=3)
    on_two_workers("cifar-cnn", pairs=3)
    idle_clients()
    memory()
    first_round()


def small(workload: str, pairs: int, whole: bool = False) -> None:
    """Rounds a second in one process, one thread; Flower has its two actors."""
    lines: list[Line] = []

    def ours() -> float:
        lines.append(hanse(workload))
        return 1 / float(lines[-1]["seconds_per_round_median"])

    emit(f"{workload}: rounds/s over Flower's simulation", **alternate(ours, lambda: pace(flower(workload)), pairs))
    if PFL:
        emit(f"{workload}: rounds/s over pfl-research", **alternate(ours, lambda: pace(pfl(workload, 1)), pairs))
    if whole:
        totals = alternate(lambda: 1 / total(hanse(workload)), lambda: 1 / total(flower(workload)), pairs)
        emit(f"{workload}: whole program, runs/s over Flower's", **totals)


def on_two_workers(workload: str, pairs: int) -> None:
    """Rounds a second on two workers of one thread, beside two actors, and beside two processes."""

    def ours() -> float:
        return pace(hanse(workload, "--workers", "2"))

    emit(
        f"{workload}, 2 workers: rounds/s over Flower's simulation",
        **alternate(ours, lambda: pace(flower(workload)), pairs),
    )
    if PFL:
        emit(
            f"{workload}, 2 workers: rounds/s over pfl-research",
            **alternate(ours, lambda: pace(pfl(workload, 2)), pairs),
        )


def idle_clients() -> None:
    """Cohorts of 100 clients with one example each, among more and more that are not asked."""
    for registered in (1_000, 10_000, 100_000):
        sizes = ("--registered", str(registered), "--cohort", "100", "--rounds", "30")
        line = hanse("noop", *sizes)
        emit(
            f"clients of one example, cohort 100 of {registered:,}: ms per round",
            ours=1e3 * line["seconds_per_round_median"],
            startup_s=line["startup_seconds"],
        )


def memory() -> None:
    """The driver's peak with cohorts of 50 and of 1,000 on two workers."""
    peaks = {
        n: hanse("cifar-cnn", "--workers", "2", "--cohort", str(n), "--rounds", "2")["peak_rss_mb_driver"]
        for n in (50, 1000)
    }
    emit(
        "cifar-cnn, 2 workers: driver's peak MB, cohort 1000 over cohort 50",
        ours=peaks[1000],
        theirs=peaks[50],
        ratio=peaks[1000] / peaks[50],
    )


def first_round() -> None:
    """From Enter to the end of the first round of `configs/federate/digits.yaml`."""
    pool = ["engine=pool", "workers=2"]
    for what, words in (("this process", []), ("2 processes", pool), ("2 Ray workers", [*pool, "address=local"])):
        seconds = sorted(seconds_to_first_round(words) for _ in range(3))
        emit(f"digits, {what}: seconds from Enter to the first finished round", ours=seconds[1], all=seconds)


def seconds_to_first_round(words: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hanse", "federate", "simulate", "configs/federate/digits.yaml", "--json"]
        began = time.perf_counter()
        with subprocess.Popen(
            [*command, "rounds=2", f"run_dir={folder}/run", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            first = next(time.perf_counter() for line in process.stdout if json.loads(line).get("split") == "train")
            process.communicate()
        return first - began


def hanse(workload: str, *words: str) -> Line:
    return last_line([sys.executable, "-m", "bench.peers.fl_hanse", workload, *words], ROOT)


def flower(workload: str) -> Line:
    return last_line([sys.executable, "fl_flower.py", workload], PEERS)


def pfl(workload: str, processes: int) -> Line:
    command = [PFL, "fl_pfl.py", workload]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [PFL, *launch, "fl_pfl.py", workload]
    return last_line(command, PEERS)


def pace(line: Line) -> float:
    return 1 / float(line["seconds_per_round_median"])


def total(line: Line) -> float:
    return float(line["seconds_total"])


def last_line(command: list[str], folder: Path) -> Line:
    """The JSON line that a program prints at its end."""
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=os.environ | one, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: Line = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return found
