"""A federated run on a real Flower deployment: a SuperLink and one SuperNode for each client, started and ended by us.

The ServerApp serves the run in its directory; it is followed from here.
"""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

from core.config import dump_run, to_yaml
from core.errors import ConfigError, WorkerError
from core.execute import Summary
from core.runtime import Record
from core.storage.path import user_path
from core.storage.stop import StopRequest
from core.storage.store import RunDirectory
from federated.federation import Federation
from federated.flower.app_config import JOINED
from federated.flower.app_directory import write_app
from federated.flower.deployment import deployment
from federated.run import FederateRun

POLL_S = 0.25  # how often new records of the ServerApp are looked for
MOST_NODES = 32  # each is three processes of 100 MB or more


def require(federation: Federation) -> None:
    """Raises ConfigError for what no deployment can do."""
    run, count = federation.run, len(federation.clients)
    if count > MOST_NODES:
        raise ConfigError(
            f"clients: engine=flower starts a SuperNode for each of {count} clients, {MOST_NODES} at most; "
            "use engine=pool, or fewer clients"
        )
    if run.resume and run.is_stateful:
        raise ConfigError(
            "resume: clients of this strategy or its transforms keep their state on their nodes, which end with the "
            "deployment; use engine=pool or engine=inproc from the start"
        )


def serve(
    federation: Federation, directory: RunDirectory, show: Callable[[Record], None], asked: Callable[[], bool]
) -> Summary:
    """Runs it to the end, or until it is asked to stop. Raises what the deployment raises, and WorkerError."""
    run, count = federation.run, len(federation.clients)
    where = directory.path.resolve()
    app = write_app(where / "flower" / "app", to_yaml(dump_run(absolute(run))), {"run-dir": str(where), JOINED: True})
    stop, failures = StopRequest(directory.logs), list[BaseException]()
    stop.clear()
    follower = directory.follow()

    def work() -> None:
        try:
            with deployment(where / "flower", nodes=count) as here:
                show({"event": "deployed", "message": f"SuperLink at {here.address}, {count} SuperNodes"})
                here.run(app)
        except BaseException as error:  # noqa: BLE001 - carried to the main thread, which raises it
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)  # the main one hears Ctrl-C
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        if asked():
            stop.ask()
        for record in follower.new():
            show(record)
    for record in follower.new():
        show(record)
    if failures:
        raise failures[0]
    summary = directory.run.summary()
    if summary:
        return summary
    if not stop():
        raise WorkerError(f"federation: the ServerApp ended without a result; see {where / 'flower' / 'logs'}")
    return {"ended": "stopped", "rounds": _last_round(directory)}


def absolute(run: FederateRun) -> FederateRun:
    """The same with paths that mean the same in every process."""
    data, devices, init = run.recipe.data, run.devices, run.init
    if not data.path.startswith("bundled:"):
        data = dataclasses.replace(data, path=str(user_path(data.path, "data.path").resolve()))
    if devices and devices.trace:
        devices = dataclasses.replace(devices, trace=str(user_path(devices.trace, "devices.trace").resolve()))
    init = str(Path(init).resolve()) if init else None
    return dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, data=data), devices=devices, init=init)


def _last_round(directory: RunDirectory) -> int:
    return max((int(record.get("round", 0)) for record in directory.run.metrics()), default=0)
