"""What runs inside Ray Train: each worker's part, and the note that the controller makes of a failure.

Imported only while a session is open, since Ray reads its settings when it is imported.
"""

import dataclasses
import json
import traceback
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from core.config import dump_run, parse_run
from core.errors import HanseError
from core.execute import Summary, execute
from core.recipe import Elastic, TrainRun
from core.runtime import Runtime
from core.storage.store import RunDirectory


class Requests:
    """What driver and workers tell each other through files in the run's logs/: stop, and an error that is final."""

    def __init__(self, directory: RunDirectory) -> None:
        self._stop, self._refused = directory.logs / "stop-requested", directory.logs / "refused.json"

    def clear(self) -> None:
        """Forgets what was said in an earlier part of the run."""
        self._stop.unlink(missing_ok=True)
        self._refused.unlink(missing_ok=True)

    def stop(self) -> None:
        """Asks the workers to save and end."""
        self._stop.touch()

    def should_stop(self) -> bool:
        """Whether the driver asks to end."""
        return self._stop.exists()

    def refuse(self, error: HanseError) -> None:
        """Says that the run cannot work, however often it is tried."""
        self._refused.write_text(json.dumps({"error": type(error).__name__, "message": str(error)}))

    def refusal(self) -> dict[str, str] | None:
        """{"error": class name, "message"} of the last refusal, if there is one."""
        if not self._refused.exists():
            return None
        said: dict[str, str] = json.loads(self._refused.read_text())
        return said


def trainer_of(run: TrainRun, directory: RunDirectory) -> TorchTrainer:
    """The Ray Train job that trains `run` in `directory`."""
    # Any: ray.train is typed as its first version, which these are not
    workers: Any = (run.workers.min, run.workers.max) if isinstance(run.workers, Elastic) else run.workers
    work: Any = _work
    callbacks: list[Any] = [_NoteFailures(directory.path.resolve())]
    resources: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpu = run.device == "cuda" or (run.device == "auto" and resources.get("GPU", 0) > 0)
    return TorchTrainer(
        work,
        train_loop_config={"run": dump_run(_absolute(run)), "directory": str(directory.path.resolve())},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": run.cpus_per_worker} | ({"GPU": 1.0} if gpu else {}),
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name="train",
            storage_path=str((directory.logs / "ray").resolve()),
            failure_config=FailureConfig(max_failures=run.max_failures),
            callbacks=callbacks,
        ),
    )


def _work(config: dict[str, Any]) -> Summary | None:
    """What each worker does."""
    context, directory = ray.train.get_context(), RunDirectory.join(Path(config["directory"]))
    requests, rank = Requests(directory), context.get_world_rank()
    if requests.refusal():  # Ray Train tries again whatever the error was
        return None
    run = parse_run(TrainRun, config["run"])
    torch.set_num_threads(max(1, int(run.cpus_per_worker)))
    runtime = Runtime(
        device=get_device(),
        rank=rank,
        world=context.get_world_size(),
        strategy=run.strategy,
        report=directory.record,
        should_stop=requests.should_stop,
    )
    try:
        return execute(run, directory, runtime)
    except HanseError as error:
        requests.refuse(error)
        raise
    except Exception:
        (directory.logs / f"worker-{rank}.log").write_text(traceback.format_exc())
        raise


class _NoteFailures(UserCallback):
    """Writes each failure of the worker group into the run's events; runs in Ray Train's controller."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        directory = RunDirectory.join(self.directory)
        if Requests(directory).refusal():
            return
        for rank, error in sorted(worker_exceptions.items()):
            lines = str(error).strip().splitlines() or [type(error).__name__]
            directory.event("worker_failed", rank=rank, reason=lines[0])


def _absolute(run: TrainRun) -> TrainRun:
    """The run with paths that mean the same in every process."""
    data, init = run.recipe.data, run.init
    if not data.path.startswith("bundled:"):
        data = dataclasses.replace(data, path=str(Path(data.path).resolve()))
    recipe = dataclasses.replace(run.recipe, data=data)
    return dataclasses.replace(run, recipe=recipe, init=str(Path(init).resolve()) if init else None)
