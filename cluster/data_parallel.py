"""One recipe on several Ray workers: `core.execute` inside Ray Train, with the numbers of a single process.

Rank 0 writes records, checkpoints and the model into the run directory, which the driver follows and shows. A worker
that dies costs the steps since the last checkpoint: Ray Train starts the group anew and every rank goes on from there.
"""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.embedded import busy
from cluster.room import wait_for_room
from cluster.session import require_ray, session
from core.errors import ConfigError, DataError, HanseError, LostError, ResourceError, WorkerError
from core.execute import Summary
from core.recipe import Elastic, TrainRun
from core.runtime import Record
from core.storage.checkpoint import latest_step
from core.storage.store import RunDirectory

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

POLL_S = 0.25  # how often the driver looks for new records
TRACEBACK_LINES = 15  # of a failed worker that are shown; all of them are in the run's logs/
_ERRORS: dict[str, type[HanseError]] = {e.__name__: e for e in (ConfigError, DataError, ResourceError, WorkerError)}


def train(
    run: TrainRun, directory: RunDirectory, show: Callable[[Record], None], stopping: Callable[[], bool]
) -> Summary:
    """Trains on `run.workers` Ray workers; `show` gets each record, `stopping` is asked whether to stop early.

    Raises what `execute` raises, ResourceError if the workers do not fit, LostError if Ray itself ends, and WorkerError
    if the workers keep dying.
    """
    least = run.workers.min if isinstance(run.workers, Elastic) else run.workers
    with session(run.address, least * run.cpus_per_worker):
        from cluster.ray_train import Requests, needs_of, trainer_of  # imports ray, which must find its settings

        requests, outcome = Requests(directory), dict[str, Any]()
        requests.clear()
        needs = needs_of(run)
        if run.address and not wait_for_room(needs, lambda said: show({"event": "waiting", "message": said}), stopping):
            return _stopped(directory)
        # a thread of its own: on the main one Ray Train would take over Ctrl-C
        thread = threading.Thread(target=_fit, args=(trainer_of(run, directory, needs), outcome), daemon=True)
        follower, has_started = directory.follow(), False
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            require_ray()
            for record in follower.new():
                has_started |= record.get("event") == "started"
                show(record)
            if stopping():
                if not has_started:  # nothing is lost, and it may wait for long until a worker is there to hear it
                    return _stopped(directory)
                requests.stop.ask()
        for record in follower.new():
            show(record)
    if refusal := requests.refusal():
        raise _ERRORS[refusal["error"]](refusal["message"])
    if "error" in outcome:
        raise _explained(outcome["error"], directory)
    summary: Summary = outcome["summary"]
    return summary


def _stopped(directory: RunDirectory) -> Summary:
    """The summary of a run that was stopped before a worker began."""
    return {"ended": "stopped", "steps": latest_step(directory.checkpoints), "wall_s": 0.0}


def _fit(trainer: "TorchTrainer", outcome: dict[str, Any]) -> None:
    try:
        result: Any = trainer.fit()
        outcome["summary"] = result.return_value
    except BaseException as error:  # noqa: BLE001 - carried to the main thread, which raises it
        outcome["error"] = error


def _explained(error: BaseException, directory: RunDirectory) -> WorkerError:
    """The error as the user should see it: one line, where all of it is, then the worker's last lines."""
    from ray.exceptions import RayActorError
    from ray.train import ControllerError

    from cluster.pool_send import line_of

    if isinstance(error, RayActorError):  # of the controller: those of workers come as what they raised
        return LostError(f"Ray Train's controller died: {line_of(error)}")
    if isinstance(error, ControllerError):
        return LostError(f"Ray Train could not start the workers: {line_of(error)}{busy()}")
    failures = getattr(error, "worker_failures", {})
    rank, first = min(failures.items(), default=(0, error))
    lines = str(first).strip().splitlines()[-TRACEBACK_LINES:] or [type(first).__name__]
    log = directory.logs / f"worker-{rank}.log"
    where = f"; all of it: {log}" if log.exists() else ""
    return WorkerError("\n".join([f"worker {rank} failed: {lines[-1].strip()}{where}", *lines]))
