"""What the tests of pools give to workers. It imports nothing heavy, so that a fresh worker is at work in a second."""

import ctypes
import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from core.errors import DataError

DEADLINE_S = 60.0


def square(x: int) -> int:
    return x * x


def divide(x: int) -> float:
    return 1 / x


def refuse(path: str) -> None:
    raise DataError(f"data.path: {path} is not there")


def leave(code: int) -> None:
    sys.exit(code)


def double(x: Any) -> Any:
    return 2 * x


def process(item: int) -> int:
    return os.getpid()


def interrupt(number: int) -> int:
    """Sends its own process a signal."""
    os.kill(os.getpid(), number)
    return os.getpid()


def is_imported(name: str) -> bool:
    return name in sys.modules


def file_of(module: str) -> str | None:
    return importlib.import_module(module).__file__


def surroundings(item: int) -> tuple[bool, str | None, str | None]:
    return "torch" in sys.modules, os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES")


def lock_of(item: int) -> Any:
    return threading.Lock() if item == 3 else item


def meet(names: tuple[Path, list[Path]]) -> int:
    """Adds a letter to its own file, and ends when the others are there: when their items have run or are running."""
    mine, others = names
    with mine.open("a") as file:
        file.write("x")
    deadline = time.monotonic() + DEADLINE_S
    while missing := [other for other in others if not other.exists()]:
        if time.monotonic() > deadline:
            raise TimeoutError(str(missing[0]))
        threading.Event().wait(0.01)
    return os.getpid()


def endless(started: Path) -> None:
    """Never ends by itself; writes its process's id when it starts."""
    _write(started, str(os.getpid()))
    threading.Event().wait()


def deaf(started: Path | None) -> None:
    """With a file never ends, and lets no other thread of its process run; writes its process's id when it starts."""
    if started:
        _write(started, str(os.getpid()))
        ctypes.PyDLL(None).pause()


def endless_or_second(item: tuple[Path | None, Any]) -> Any:
    if item[0]:
        endless(item[0])
    return item[1]


def endless_or_process(started: Path | None) -> int:
    if started:
        endless(started)
    return os.getpid()


def killed(deaths: tuple[Path, int]) -> int:
    """Kills its worker the first n times; (a file that counts, n). Gives how often it died."""
    file, times = deaths
    died = len(file.read_text()) if file.exists() else 0
    if died < times:
        _write(file, "x" * (died + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return died


def killed_with(others: tuple[Path, list[int]]) -> str:
    """Kills these processes and then its own, the first time; (a file that tells, their ids)."""
    file, pids = others
    if not file.exists():
        _write(file, "x")
        for pid in sorted(pids, key=lambda pid: pid == os.getpid()):
            os.kill(pid, signal.SIGKILL)
    return "done"


class Stillborn:
    """An actor that dies while it starts."""

    def __init__(self, *arguments: Any) -> None:
        os._exit(7)

    def begin(self, fn: Any) -> None:
        """Never reached."""


def _write(file: Path, text: str) -> None:
    """So that whoever sees the file sees all of it."""
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(text)
    part.replace(file)
