"""What goes with what: the combinations that Hanse refuses, each with its reason and the way out.

A row is (name, whether it applies, the message). `ARCHITECTURE.md` shows this table; a test walks every row.
"""

from collections.abc import Callable

from core.errors import ConfigError
from core.recipe import TrainRun

Row = tuple[str, Callable[[TrainRun], bool], str]


def _norm(run: TrainRun) -> str:
    return str(getattr(run.recipe.model, "norm", ""))


ROWS: tuple[Row, ...] = (
    (
        "batch norm on several workers",
        lambda run: run.workers not in (0, 1) and _norm(run) == "batch",
        "model.norm: batch statistics depend on how a batch is split over workers; use model.norm=group, or workers=0",
    ),
    (
        "batch norm with accumulation",
        lambda run: run.recipe.train.accumulate > 1 and _norm(run) == "batch",
        "model.norm: batch statistics depend on train.accumulate; use model.norm=group, or train.accumulate=1",
    ),
    (
        "FSDP in one process",
        lambda run: run.strategy == "fsdp" and run.workers in (0, 1),
        "strategy: fsdp shards over workers and there is one; set workers to 2 or more, or strategy=ddp",
    ),
    (
        "an address without workers",
        lambda run: run.address is not None and run.workers == 0,
        "address: workers is 0, so the run stays in this process; set workers=N to train on that cluster",
    ),
)


def check(run: TrainRun) -> None:
    """Raises ConfigError for the first row that applies."""
    for _, applies, message in ROWS:
        if applies(run):
            raise ConfigError(message)
