"""A connection to Ray for as long as a command runs: an embedded Ray of our own, or a cluster at an address.

Whoever waits for Ray asks `require_ray` from time to time: Ray's own calls may wait for ever for a Ray that is gone.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

from cluster.embedded import busy, embedded, set_token, what_died
from core.errors import LostError, ResourceError, words_of

# Ray reads these when it is first imported, in every process, so nothing in this room imports ray before a session has
# begun. A user's own value wins.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean on a worker what they mean here
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # a dead worker and a finished run are noticed soon
    "RAY_worker_niceness": "0",  # workers are what the machine is for; Ray puts them behind everything else
    "RAY_prestart_worker_first_driver": "0",  # Train starts its own: those started ahead would idle
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|Raylet is terminated",  # known where it matters
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; without it ray.init warns
}
CONNECT_TIMEOUT_S = 5.0
LOOK_S = 1.0  # between two looks at Ray's processes: a pool asks for each of its items
_open: list[str | None] = []  # the address of the session that is open
_looked = [0.0]  # when they were looked at last


@contextlib.contextmanager
def session(address: str | None, cpus: float) -> Iterator[None]:
    """Connects to `address`, or starts a Ray with this machine's processors; disconnects at the end.

    Raises ResourceError if nothing answers at the address, Ray does not start, or this machine has fewer than `cpus`
    processors.
    """
    address = None if address == "local" else address
    if address is None and cpus > (available := os.cpu_count() or 1):
        raise ResourceError(
            f"workers: they ask for {cpus:g} CPUs and this machine has {available}; use fewer workers, "
            f"a smaller cpus_per_worker, or address= of a cluster"
        )
    if address is not None:
        _require_listener(address)
    set_environment()
    if address is None:
        set_token()
    there = {"address": address, "runtime_env": _shipped()} if address else {}
    with contextlib.nullcontext(there) if address else embedded() as arguments:
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)
        except Exception as error:
            raise _no_start(address, error) from error
        _open.append(address)
        try:
            yield
        finally:
            _open.pop()
            ray.shutdown()


def set_environment() -> None:
    """What Ray reads when it is first imported in this process."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def require_ray() -> None:
    """LostError if the Ray of the open session is gone. Ray itself notices it after a minute, by ending the process."""
    if _open[-1] is not None or time.monotonic() < _looked[0] + LOOK_S:
        return
    _looked[0] = time.monotonic()
    if name := what_died():
        raise LostError(f"Ray's process {name} has died, and Ray with it")


def _no_start(address: str | None, error: Exception) -> ResourceError:
    """What to say of a Ray that could not be reached or started."""
    if address:
        return ResourceError(f"address: Ray at {address} did not answer: {words_of(error)}")
    way_out = busy() or "; see `hanse doctor`, or train without Ray: workers=0"
    return ResourceError(f"Ray did not start on this machine: {words_of(error)}{way_out}")


def _shipped() -> dict[str, object]:
    """Our own packages, for a cluster on which Hanse is not installed, and the variables its workers need."""
    root = Path(__file__).parent.parent
    packages = [str(root / name) for name in ("core", "cluster", "federated")]
    workers = {name: value for name, value in ENVIRONMENT.items() if name.startswith("RAY_TRAIN")}
    return {"py_modules": packages, "env_vars": workers}


def _require_listener(address: str) -> None:
    """Ray itself tries for half a minute to reach an address where nothing is; one connection tells in no time."""
    if address == "auto":
        return
    parts = urlparse(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port or (10001 if parts.scheme == "ray" else None)
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise ResourceError(f"address: '{address}' is not HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ResourceError(
            f"address: no Ray answers at {address} ({error.strerror or error}); start one with `ray start --head`, "
            f"or leave address out for a Ray on this machine"
        ) from None
