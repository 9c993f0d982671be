"""What runs inside Ray Train: each worker's part, and the note that the controller makes of a failure.

Imported only while a session is open, since Ray reads its settings when it is imported.
"""

import contextlib
import json
import os
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from cluster.keeper import MARK
from core.config import dump_run, parse_run
from core.errors import HanseError, ResourceError
from core.execute import Summary, execute
from core.recipe import Elastic, TrainRun
from core.runtime import Runtime
from core.storage.atomic import replace_text
from core.storage.stop import StopRequest
from core.storage.store import RunDirectory, is_run

START_ATTEMPTS = 3  # to get the workers placed, before Ray Train gives up
TOGETHER_S = 2.0  # within which all workers find what is wrong with a run, if all can
LOOK_S = 0.02


class Requests:
    """What driver and workers tell each other through files in the run's logs/: stop, and an error that is final."""

    def __init__(self, directory: RunDirectory) -> None:
        self._logs, self.stop = directory.logs, StopRequest(directory.logs)

    def clear(self) -> None:
        """Forgets what was said in an earlier part of the run."""
        self.stop.clear()
        for file in self._logs.glob("refused-*.json"):
            file.unlink(missing_ok=True)

    def refuse(self, rank: int, error: HanseError) -> None:
        """Says that the run cannot work, however often it is tried. Each rank has a file of its own."""
        said = json.dumps({"error": type(error).__name__, "message": str(error)})
        with contextlib.suppress(OSError):  # a full disk may be the error itself, which is raised all the same
            replace_text(self._logs / f"refused-{rank}.json", said)

    def is_refused_by(self, world: int) -> bool:
        """Whether all ranks refuse the run; waits for them a little."""
        deadline = time.monotonic() + TOGETHER_S
        while len(list(self._logs.glob("refused-*.json"))) < world:
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S)
        return True

    def refusal(self) -> dict[str, str] | None:
        """{"error": class name, "message"} of the lowest rank that refused, if one did."""
        files = sorted(self._logs.glob("refused-*.json"))
        return dict(json.loads(files[0].read_text())) if files else None


def trainer_of(run: TrainRun, directory: RunDirectory, needs: Mapping[str, float]) -> TorchTrainer:
    """The Ray Train job that trains `run` in `directory`. needs: what `needs_of` says."""
    # Any: ray.train is typed as its first version, which these are not
    workers: Any = (run.workers.min, run.workers.max) if isinstance(run.workers, Elastic) else run.workers
    work: Any = _work
    failures: Any = FailureConfig
    callbacks: list[Any] = [_NoteFailures(directory.path.resolve())]
    gpu = "GPU" in needs
    trainer = _Trainer if run.address else _EmbeddedTrainer
    return trainer(
        work,
        train_loop_config={"run": dump_run(run.absolute()), "directory": str(directory.path.resolve())},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": run.cpus_per_worker} | ({"GPU": 1.0} if gpu else {}),
        ),
        torch_config=(TorchConfig if run.address else _FileConfig)(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name="train",
            storage_path=str((directory.logs / "ray").resolve()),
            failure_config=failures(max_failures=run.max_failures, controller_failure_limit=START_ATTEMPTS),
            callbacks=callbacks,
        ),
    )


class _FileBackend(_TorchBackend):
    """The workers of one machine meet in a file, for torch's own store would listen on every address."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_set_torch_distributed_env_vars)
        store = worker_group.execute_single(0, _new_store)
        shared = {"world_size": len(worker_group), "init_method": f"file://{store}", "backend": backend_config.backend}
        setups = [
            worker_group.execute_single_async(rank, _setup_torch_process_group, world_rank=rank, **shared)
            for rank in range(len(worker_group))
        ]
        ray.get(setups)


class _FileConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _FileBackend


def _new_store() -> str:
    """Each start of the group has a file of its own: a file store that was used before holds old ranks."""
    return tempfile.mktemp(prefix="store-", dir=os.environ[MARK])


class _Trainer(TorchTrainer):
    """Without the keeper of Ray's data sets, of which there are none: a process that takes two seconds to start."""

    idle: tuple[type, ...] = (DatasetsCallback,)

    def _create_default_callbacks(self) -> list[Any]:
        made: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # of the first version, see above
        return [callback for callback in made if not isinstance(callback, self.idle)]


class _EmbeddedTrainer(_Trainer):
    """Also without the keeper of placement groups, for they end with the Ray that they are on."""

    idle = (DatasetsCallback, PlacementGroupCleanerCallback)


def needs_of(run: TrainRun) -> dict[str, float]:
    """The CPUs, and the GPUs if it takes any, of the least number of workers. ResourceError if the cluster, were it
    idle, has not as much."""
    there: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
    least = run.workers.min if isinstance(run.workers, Elastic) else run.workers
    needs = {"CPU": least * run.cpus_per_worker}
    if run.device == "cuda" or (run.device == "auto" and there.get("GPU", 0) >= least):
        needs["GPU"] = float(least)
    for name, needed in needs.items():
        if needed > there.get(name, 0):
            raise ResourceError(
                f"workers: {least} of them need {needed:g} {name}s and the cluster has {there.get(name, 0):g}; "
                f"use fewer workers{', or device=cpu' if name == 'GPU' else ' or a smaller cpus_per_worker'}"
            )
    return needs


def _work(config: dict[str, Any]) -> Summary | None:
    """What each worker does."""
    context, path = ray.train.get_context(), Path(config["directory"])
    if not is_run(path):
        raise ResourceError(f"run_dir: {path} is not visible on every worker's machine; put it on storage they share")
    directory = RunDirectory.join(path)
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
        should_stop=requests.stop,
    )
    try:
        return execute(run, directory, runtime)
    except HanseError as error:
        requests.refuse(rank, error)
        if requests.is_refused_by(runtime.world):
            return None  # nobody waits for this rank, and for an error Ray Train would start all workers again
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
