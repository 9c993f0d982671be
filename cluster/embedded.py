"""A Ray of our own on this machine: it listens on the loopback address only, asks every caller for a token that only
this process and those it starts know, keeps its files in a folder that only this user can read, opens no dashboard, and
is gone when the command ends.
"""

import contextlib
import os
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from cluster import keeper
from core.errors import ResourceError

VITAL = ("gcs_server", "raylet")  # Ray is over when one of these is
MOST_PATIENCE = 10.0
FILES, FILES_PER_CPU = 100, 20  # open in the driver and in Ray; with 64 on two processors Ray fell over, 100 was enough
TIMES_S = {  # what Ray waits for while it starts; a busy machine needs more of it
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": 60,
    "RAY_worker_register_timeout_seconds": 60,
    "RAY_gcs_server_request_timeout_seconds": 60,
    "RAY_gcs_server_port_wait_time_s": 30,
}


def patience() -> float:
    """How many times longer things take here than on an idle machine: processes that want a processor, for each."""
    busy = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 1.0
    return min(max(busy, 1.0), MOST_PATIENCE)


def busy() -> str:
    """What to add to an error that may come from a busy machine; empty if it is not busy."""
    if patience() == 1:
        return ""
    load = f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs"
    return f"; this machine is busy ({load}): it may work when less runs beside it"


@contextlib.contextmanager
def embedded() -> Iterator[dict[str, Any]]:
    """Yields the arguments of `ray.init`; Ray may start and end within. At the end none of its processes is left, nor
    its folder, even if this process is killed. ResourceError if too few files may be opened."""
    cpus = os.cpu_count() or 1
    _require_files(cpus)
    folder = tempfile.mkdtemp(prefix="hanse-ray-", dir=_parent())  # mode 0700; what Ray makes in it is open to all
    command = [sys.executable, keeper.__file__, folder]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True),  # the end of `with` waits for it
        _environment({keeper.MARK: folder, **_loopback(), **_times()}),
        _ray_on_loopback(),
    ):
        yield {
            "address": "local",
            "num_cpus": cpus,
            "include_dashboard": False,
            "_temp_dir": os.path.join(folder, "ray"),
        }


def what_died() -> str:
    """The vital process of the Ray that this process has started which is no more; empty while all are well."""
    alive = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE:
                alive.add(child.name())
    return next((name for name in VITAL if name not in alive), "")


def _parent() -> str | None:
    """Where Ray puts its own folder. Python's choice may be too long: the path of a socket has to be short."""
    return os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if sys.platform == "linux" else None) or "/tmp"


def _loopback() -> dict[str, str]:
    """Keeps Ray, gloo and NCCL on the loopback device."""
    device = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    return {"GLOO_SOCKET_IFNAME": device, "NCCL_SOCKET_IFNAME": device, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def set_token() -> None:
    """Once for a process, for Ray reads it once. Ray's own way writes it to a file that every user can read."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)


def _require_files(cpus: int) -> None:
    """ResourceError if this process may not open as many files as Ray needs, which would end it without a word. Ray
    raises the limit itself as far as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < (needed := FILES + FILES_PER_CPU * cpus):
        raise ResourceError(
            f"workers: Ray opens up to {needed} files and this process may open {most}; raise the limit "
            f"(`ulimit -n {needed}`), or train without Ray: workers=0"
        )


def _times() -> dict[str, str]:
    factor = patience()
    return {name: str(round(seconds * factor)) for name, seconds in TIMES_S.items() if name not in os.environ}


@contextlib.contextmanager
def _ray_on_loopback() -> Iterator[None]:
    """Ray listens on 127.0.0.1 where it does not expect other machines, as on a Mac. The variable says so to processes
    that import Ray later; this one may have imported it before."""
    from ray._private import ray_constants as constants

    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
