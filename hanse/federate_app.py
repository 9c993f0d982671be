"""Runs a Flower app directory. Its workers start first: they import what they need while this process does the same."""

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.pool import LocalPool, WorkerPool
from hanse.console import Console, JsonConsole
from hanse.mentioned import mentioned
from hanse.workers import address_of, gpu_share, workers

NODE = "federated.flower.foreign"
THREADED = {"jax", "tensorflow"}  # which start threads that do not bear a fork


@dataclass(frozen=True)
class AppRun:
    """Where a Flower app runs: over how many clients, on a pool of workers or in this process.

    `workers`: as many as this machine has processors, if not given; those of `address` are Ray's.
    """

    clients: int = 10
    engine: Literal["inproc", "pool"] = "pool"
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        for name in ("clients", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.address is not None and self.engine != "pool":
            raise ValueError("address only goes with engine=pool; set engine=pool")

    @property
    def size(self) -> int:
        """How many workers: more than there are clients would idle."""
        return min(self.workers or os.cpu_count() or 1, self.clients)


def simulate_app(directory: Path, run: AppRun, run_config: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """Runs a Flower app directory to its end: its summary."""

    def report(record: dict[str, Any]) -> None:
        if record["event"] == "log" and not isinstance(console, JsonConsole):
            console.event("log" if record["level"] == "INFO" else "warning", message=record["text"])
        else:
            console.event(record["event"], **{key: value for key, value in record.items() if key != "event"})

    with _pool_of(directory, run) as pool:
        from federated.flower import foreign

        return foreign.simulate(directory, pool, run.clients, run_config, report)


@contextmanager
def _pool_of(directory: Path, run: AppRun) -> Iterator[WorkerPool]:
    if run.engine == "inproc":
        with LocalPool() as local:
            yield local
        return
    gpus = gpu_share(run.size) if address_of(run.address) is None and _has_gpu() else 0.0
    preload = (NODE,) if gpus else (NODE, *_modules(directory))
    path = (str(directory.resolve()),)
    with workers(run.size, run.address, gpus_per_worker=gpus, preload=preload, path=path) as pool:
        yield pool


def _has_gpu() -> bool:
    """As far as can be told without torch, whose import takes a second that the workers need."""
    return any(found for pattern in ("nvidia[0-9]*", "dxg", "kfd") for found in Path("/dev").glob(pattern))


def _modules(directory: Path) -> list[str]:
    """What the app's clients will import, and their own module: what may be imported before the workers are forked.
    What is wrong with the app is said when it is read."""
    try:
        project = tomllib.loads((directory / "pyproject.toml").read_text(encoding="utf-8"))
        module = str(project["tool"]["flwr"]["app"]["components"]["clientapp"]).partition(":")[0]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    others = mentioned(directory, module)
    return [] if any(name.partition(".")[0] in THREADED for name in others) else [module, *others]
