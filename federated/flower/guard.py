"""Runs one command, and ends it with all its descendants as soon as whoever started it closes the pipe or dies.

    python guard.py GRACE_S COMMAND [ARGUMENT ...]      the pipe is standard input; a byte on it kills without grace

Flower's daemons start processes of their own, some in sessions of their own, which outlive a killed parent for seconds.
On Linux every orphan below this process becomes its child, so that none gets away. It stands on the standard library
alone and is started as a file: one that takes long to start, or needs the project, is a poor guard.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
ORPHAN_CHECK_S = 1.0  # a fork of our starter may hold its end of the pipe open after its death


def main(grace_s: float, command: list[str]) -> int:
    """The command's exit status, or 128 + the number of the signal that ended it, once all of it is gone."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *_: 0
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    starter = os.getppid()
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C at the terminal is our starter's to answer
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509 - no thread yet
    )
    threading.Thread(target=_end_when_released, args=(child.pid, grace_s, starter), daemon=True).start()
    status = _reap_until(child.pid)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    _kill_children()
    return status if status >= 0 else 128 - status


def _end_when_released(pid: int, grace_s: float, starter: int) -> None:
    said = b""
    while os.getppid() == starter:
        if select.select([0], [], [], ORPHAN_CHECK_S)[0]:
            said = os.read(0, 1)
            break
    if not said:
        os.kill(pid, signal.SIGTERM)
        time.sleep(grace_s)
    os.kill(pid, signal.SIGKILL)


def _reap_until(pid: int) -> int:
    """Also reaps orphans: Flower's processes take a zombie for a living parent, and stay."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _kill_children() -> None:
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            time.sleep(0.01)


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text(errors="replace").rpartition(")")[2].split()[1]
        except OSError:  # it has just ended
            continue
        if int(parent) == os.getpid():
            found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
