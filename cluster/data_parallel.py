"""One recipe on several Ray workers: `core.execute` inside Ray Train, with the numbers of a single process.

Rank 0 writes records, checkpoints and the model into the run directory, which the driver reads and shows. A worker that
dies costs the steps since the last checkpoint: Ray Train starts the group anew and every rank resumes from there.
"""

import dataclasses
import json
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from cluster.session import session
from core.config import dump_run, parse_run
from core.errors import ConfigError, DataError, HanseError, ResourceError, WorkerError
from core.execute import Summary, execute
from core.recipe import Elastic, TrainRun
from core.runtime import Record, Runtime, choose_device
from core.store import RunDirectory

POLL_S = 0.1  # how often the driver looks for new records
STOP, REFUSED = "stop-requested", "refused.json"  # in the run's logs/: asked of rank 0; said by a worker
_ERRORS: dict[str, type[HanseError]] = {e.__name__: e for e in (ConfigError, DataError, ResourceError, WorkerError)}


def train(
    run: TrainRun, directory: RunDirectory, show: Callable[[Record], None], stopping: Callable[[], bool]
) -> Summary:
    """Trains on `run.workers` Ray workers; `show` gets each record, `stopping` is asked whether to stop early.

    Raises what `execute` raises, ResourceError if the workers do not fit the machine, and WorkerError if they keep dying.
    """
    for name in (STOP, REFUSED):
        (directory.logs / name).unlink(missing_ok=True)
    most = run.workers.max if isinstance(run.workers, Elastic) else run.workers
    with session(run.address, most * run.cpus_per_worker):
        outcome: dict[str, Any] = {}
        trainer = _trainer(run, directory)
        # a thread of its own: on the main one Ray Train would take over Ctrl-C
        thread = threading.Thread(target=_fit, args=(trainer, outcome), daemon=True)
        follower = directory.follow()
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            for record in follower.new():
                show(record)
            if stopping():
                (directory.logs / STOP).touch()
        for record in follower.new():
            show(record)
    if "error" in outcome:
        raise _explain(outcome["error"], directory)
    if _refusal(directory) is not None:
        raise _explain(WorkerError(""), directory)
    summary: Summary = outcome["summary"]
    return summary


def _trainer(run: TrainRun, directory: RunDirectory) -> TorchTrainer:
    workers = (run.workers.min, run.workers.max) if isinstance(run.workers, Elastic) else run.workers
    gpu = choose_device(run.device).type == "cuda" if run.address is None else run.device != "cpu"
    resources = {"CPU": run.cpus_per_worker} | ({"GPU": 1.0} if gpu else {})
    return TorchTrainer(
        _work,
        train_loop_config={"run": dump_run(_absolute(run)), "directory": str(directory.path.resolve())},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name="train",
            storage_path=str((directory.logs / "ray").resolve()),
            failure_config=FailureConfig(max_failures=run.max_failures),
            callbacks=[_NoteFailures(directory.path.resolve())],
        ),
    )


def _fit(trainer: TorchTrainer, outcome: dict[str, Any]) -> None:
    try:
        outcome["summary"] = trainer.fit().return_value
    except BaseException as error:  # carried to the main thread, which raises it
        outcome["error"] = error


def _work(config: dict[str, Any]) -> Summary | None:
    """What each worker does. An error that trying again cannot mend is written down instead of raised."""
    import torch

    context, directory = ray.train.get_context(), RunDirectory.join(Path(config["directory"]))
    rank = context.get_world_rank()
    if _refusal(directory) is not None:  # a rank refused: the group was started anew for nothing
        return None
    run = parse_run(TrainRun, config["run"])
    torch.set_num_threads(max(1, int(run.cpus_per_worker)))
    runtime = Runtime(
        device=get_device(),
        rank=rank,
        world=context.get_world_size(),
        strategy=run.strategy,
        report=directory.record,
        should_stop=(directory.logs / STOP).exists if rank == 0 else lambda: False,
    )
    try:
        return execute(run, directory, runtime)
    except HanseError as error:
        said = {"error": type(error).__name__, "message": str(error), "rank": rank}
        (directory.logs / REFUSED).write_text(json.dumps(said))
        raise
    except BaseException:
        (directory.logs / f"worker-{rank}.log").write_text(traceback.format_exc())
        raise


class _NoteFailures(UserCallback):
    """Writes each failure of the worker group into the run's events; runs in Ray Train's controller."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        directory = RunDirectory.join(self.directory)
        if _refusal(directory) is None:
            for rank, error in sorted(worker_exceptions.items()):
                reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
                directory.event(event="worker_failed", rank=rank, reason=reason)


def _absolute(run: TrainRun) -> TrainRun:
    """The run with paths that mean the same in every process."""
    data, init = run.recipe.data, run.init
    if ":" not in data.path:
        data = dataclasses.replace(data, path=str(Path(data.path).resolve()))
    recipe = dataclasses.replace(run.recipe, data=data)
    return dataclasses.replace(run, recipe=recipe, init=str(Path(init).resolve()) if init else None)


def _refusal(directory: RunDirectory) -> dict[str, Any] | None:
    try:
        said: dict[str, Any] = json.loads((directory.logs / REFUSED).read_text())
    except FileNotFoundError:
        return None
    return said


def _explain(error: BaseException, directory: RunDirectory) -> BaseException:
    """The error as the user should see it: the worker's last lines, then where all of it is."""
    if (said := _refusal(directory)) is not None:
        return _ERRORS[said["error"]](said["message"])
    failures = getattr(error, "worker_failures", {})
    rank, first = min(failures.items(), default=(0, error))
    lines = str(first).strip().splitlines()[-15:]
    log = directory.logs / f"worker-{rank}.log"
    where = f"; all of it: {log}" if log.exists() else ""
    return WorkerError(
        "\n".join([f"worker {rank} failed: {lines[-1] if lines else type(first).__name__}{where}", *lines])
    )
