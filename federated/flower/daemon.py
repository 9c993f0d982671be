"""A command under its guard (`guard.py`), and what its log says when it has ended although it should run."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from core.errors import HanseError
from federated.flower import guard

GRACE_S = 3.0  # between asking a command to end and killing it
NOTE_LINES = 20

_COLOR = re.compile(r"\x1b\[[0-9;]*m")


class Daemon:
    """A command that runs under its guard (`guard.py`), with all its output in one file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name, self.log = name, log
        with log.open("wb") as file:
            self._guard = subprocess.Popen(
                [sys.executable, "-P", guard.__file__, str(GRACE_S), *command],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The guard's; the command is its child."""
        return self._guard.pid

    @property
    def status(self) -> int | None:
        """The exit status, or None while any of it runs."""
        return self._guard.poll()

    def kill(self) -> None:
        """Kills the command and its descendants without grace, as a crash would. For tests of faults."""
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):  # it has just ended
            self._guard.stdin.write(b"k")
        self.release()
        self.wait()

    def release(self) -> None:
        """Asks the command to end; returns at once."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()

    def wait(self) -> int:
        """Waits for the end of a released command and its descendants. The exit status."""
        return self._guard.wait()

    def ended_early(self, kind: type[HanseError]) -> HanseError:
        """What to say when the command is gone though it should run: its last error, and more lines as a note."""
        lines = self.lines()
        error = kind(f"{self.name} ended with status {self.status}: {last_error(lines)} (log: {self.log})")
        error.add_note("\n".join(lines[-NOTE_LINES:]))
        return error

    def lines(self) -> list[str]:
        """What it has said so far."""
        return plain(self.log.read_text(encoding="utf-8", errors="replace")).splitlines()


def plain(text: str) -> str:
    """The text without the codes that color it."""
    return _COLOR.sub("", text)


def last_error(lines: Sequence[str]) -> str:
    """The last error in a log of Flower's, on one line: from the word ERROR to the next record, else the last line."""
    lines = [plain(line).strip() for line in lines]
    starts = [index for index, line in enumerate(lines) if line.startswith("ERROR")]
    if not starts:
        return next((line for line in reversed(lines) if line), "it said nothing")
    found = [lines[starts[-1]].removeprefix("ERROR").lstrip(" :")]
    for line in lines[starts[-1] + 1 :]:
        if line.startswith(("INFO", "WARNING", "For more information")):
            break
        found.append(line)
    return " ".join(" ".join(found).split())
