"""Guards: a command ends with everything that it has started, whoever lets go of it and however."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from core.errors import ResourceError
from federated.flower import daemon
from federated.flower.daemon import Daemon, last_error

ROOT = Path(__file__).resolve().parents[2]
# A command with a child in a session of its own, whose parent in between is gone; all of them ignore a polite request.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[2] == "top":
    subprocess.run([sys.executable, __file__, sys.argv[1], "middle"])
elif sys.argv[2] == "middle":
    subprocess.Popen([sys.executable, __file__, sys.argv[1], "bottom"], start_new_session=True)
    sys.exit()
with open(sys.argv[1], "w") as fifo:
    fifo.write(f"{os.getpid()}\\n")
time.sleep(600)
"""
POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
open(sys.argv[1], "w").close()
time.sleep(600)
"""
STARTER = """
import os, sys, time
from pathlib import Path
from federated.flower.daemon import Daemon
held = Daemon("x", sys.argv[2:], Path(sys.argv[1]), os.environ)
time.sleep(600)
"""
Command = Callable[[str], tuple[list[str], Path]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Of a program's text: what runs it, and the pipe on which it says that it is there."""
    monkeypatch.setattr(daemon, "GRACE_S", 0.2)

    def write(text: str) -> tuple[list[str], Path]:
        program, fifo = tmp_path / "program.py", tmp_path / "fifo"
        program.write_text(text)
        os.mkfifo(fifo)
        return [sys.executable, str(program), str(fifo), "top"], fifo

    return write


def both(fifo: Path) -> list[psutil.Process]:
    """The stubborn command and its lost descendant, once both are there."""
    pids: set[str] = set()
    while len(pids) < 2:
        pids |= set(fifo.read_text().split())  # blocks until one of them writes
    return [psutil.Process(int(pid)) for pid in pids]


def still_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=20)[1]


@pytest.mark.parametrize("ending", ["release", "kill"])
def test_a_command_ends_with_its_lost_descendants(tmp_path: Path, command: Command, ending: str) -> None:
    words, fifo = command(STUBBORN)
    held = Daemon("x", words, tmp_path / "log", os.environ)
    processes = both(fifo)
    getattr(held, ending)()
    assert held.wait() == 128 + signal.SIGKILL
    assert still_alive(processes) == []


def test_a_command_ends_with_its_lost_descendants_when_its_starter_is_killed(tmp_path: Path, command: Command) -> None:
    words, fifo = command(STUBBORN)
    (tmp_path / "starter.py").write_text(STARTER)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    starter = subprocess.Popen([sys.executable, tmp_path / "starter.py", tmp_path / "log", *words], env=environment)
    processes = both(fifo) + psutil.Process(starter.pid).children()
    starter.kill()
    starter.wait()
    assert still_alive(processes) == []


def test_a_command_ends_when_its_guard_is_killed(tmp_path: Path, command: Command) -> None:
    words, fifo = command(POLITE)
    held = Daemon("x", words, tmp_path / "log", os.environ)
    fifo.read_text()
    processes = psutil.Process(held.pid).children()
    os.kill(held.pid, signal.SIGKILL)
    held.wait()
    held.release()
    assert len(processes) == 1 and still_alive(processes) == []


def test_a_released_command_may_end_in_its_own_way(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "GRACE_S", 60.0)
    words, fifo = command(POLITE)
    held = Daemon("x", words, tmp_path / "log", os.environ)
    fifo.read_text()
    held.release()
    assert held.wait() == 7


def test_a_command_that_ends_early_says_its_status_and_last_words(tmp_path: Path) -> None:
    code = "print('one'); print('\\033[91mtwo\\033[0m'); raise SystemExit(3)"
    held = Daemon("server", [sys.executable, "-c", code], tmp_path / "log", os.environ)
    assert held.wait() == held.status == 3
    held.kill()  # too late, and no error
    error = held.ended_early(ResourceError)
    assert isinstance(error, ResourceError)
    assert str(error) == f"server ended with status 3: two (log: {tmp_path / 'log'})"
    assert error.__notes__ == ["one\ntwo"]


@pytest.mark.parametrize(
    "log, expected",
    [
        ("", "it said nothing"),
        ("INFO : up\nTraceback\nOSError: no disk\n\n", "OSError: no disk"),
        (
            "ERROR : first\nINFO : x\n\x1b[91mERROR \x1b[0m:     Exit Code: 305\nNo connection.\n\n[code: 2004] No.\n\n"
            "For more information, visit: <https://x>\nINFO:     Shutting down",
            "Exit Code: 305 No connection. [code: 2004] No.",
        ),
        ("ERROR :  no disk\n\nINFO :     Shutting down\nWARNING : retrying", "no disk"),
    ],
    ids=["nothing", "traceback", "flower", "next record"],
)
def test_the_last_error_of_a_log_is_one_line(log: str, expected: str) -> None:
    assert last_error(log.splitlines()) == expected
