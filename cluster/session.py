"""A connection to Ray for as long as a command runs: an embedded Ray of our own, or a cluster at an address.

An embedded Ray listens on this machine only, opens no dashboard, and is gone when the command ends.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

from core.errors import ResourceError

# Read by the processes that ray.init starts, so they are set before it; a user's own value wins.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # of an embedded Ray, which listens on the loopback interface alone
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean on a worker what they mean here
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a dead worker and a finished run are noticed at once
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
CONNECT_TIMEOUT_S = 5.0


@contextlib.contextmanager
def session(address: str | None, cpus: float) -> Iterator[None]:
    """Connects to `address`, or starts a Ray with this machine's processors; disconnects at the end.

    Raises ResourceError if nothing answers at the address, or this machine has fewer than `cpus` processors.
    """
    if address is None and cpus > (available := os.cpu_count() or 1):
        raise ResourceError(
            f"workers: they ask for {cpus:g} CPUs and this machine has {available}; use fewer workers, "
            f"a smaller cpus_per_worker, or address= of a cluster"
        )
    if address is not None:
        _require_listener(address)
    for name, value in ENVIRONMENT.items():
        if name != "RAY_AUTH_MODE" or address is None:
            os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=_shipped() if address else None,
            **({} if address else {"num_cpus": os.cpu_count(), "_node_ip_address": "127.0.0.1"}),
        )
    except (ConnectionError, RuntimeError) as error:
        raise ResourceError(f"address: Ray at {address or 'this machine'} did not start or answer: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _shipped() -> dict[str, object]:
    """Our own packages, for a cluster on which Hanse is not installed, and the variables its workers need."""
    root = Path(__file__).parent.parent
    packages = [str(root / name) for name in ("core", "cluster") if (root / name).is_dir()]
    workers = {name: value for name, value in ENVIRONMENT.items() if name.startswith("RAY_TRAIN")}
    return {"py_modules": packages, "env_vars": workers}


def _require_listener(address: str) -> None:
    """Ray itself tries for half a minute to reach an address where nothing is; one connection tells in no time."""
    if address in ("auto", "local"):
        return
    parts = urlparse(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
        if host is None or (port is None and parts.scheme not in ("ray",)):
            raise ValueError
    except ValueError:
        raise ResourceError(f"address: '{address}' is not HOST:PORT, ray://HOST:PORT or auto") from None
    try:
        socket.create_connection((host, port or 10001), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ResourceError(
            f"address: no Ray answers at {address} ({error.strerror or error}); start one with `ray start --head`, "
            f"or leave address out for a Ray on this machine"
        ) from None
