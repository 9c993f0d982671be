"""Ends an embedded Ray however its driver ends: waits until the driver closes standard input, or dies; then kills every
process of that Ray and removes its folder.

    python keeper.py FOLDER

A process of its own, because some of Ray's processes go on when their driver is killed. It imports little, and none of
our packages, so that it starts at once.
"""

import contextlib
import os
import shutil
import signal
import sys
import time

import psutil

MARK = "HANSE_RAY_FOLDER"  # in the environment of each process of an embedded Ray: its folder
AGAIN_S = 0.1  # a process that was just being started shows its environment only then
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(folder: str) -> None:
    """Waits for the driver's end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    while killed(folder):
        time.sleep(AGAIN_S)
    shutil.rmtree(folder, ignore_errors=True)


def killed(folder: str) -> int:
    """Kills the processes of the Ray in a folder; returns how many there were."""
    found = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and _belongs(process, folder):
                process.kill()
                found += 1
    return found


def _belongs(process: psutil.Process, folder: str) -> bool:
    """By its environment; where Ray has written the process's title over that, by its log in the folder."""
    if process.name().startswith("ray::"):
        return any(file.path.startswith(folder + os.sep) for file in process.open_files())
    return bool(process.environ().get(MARK) == folder)


if __name__ == "__main__":
    main(sys.argv[1])
