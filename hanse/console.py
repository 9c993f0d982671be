"""What a command says while it works: one live table on a terminal, plain lines in a pipe, JSON lines with --json.

The way is chosen once, by `Console.choose`; commands only say what happened. Use it in a `with` block: leaving it gives
the terminal back as it was, also after an error or Ctrl-C. Only the live table imports rich.
"""

import json
import math
import os
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import PurePath
from types import TracebackType
from typing import Any, Self, TextIO

from core.plain import cut
from core.printable import printable
from hanse.format import columns, labeled, number

# What a record counts, and the key of how many there will be.
COUNTERS = {"step": "steps", "round": "rounds", "generation": "generations", "trial": "trials", "epoch": "epochs"}
# Kept for metrics.jsonl and the report: a line has no room for them.
UNSAID = {"time", *(f"{name}_{mean}" for name in ("precision", "recall") for mean in ("macro", "micro")), "f1_micro"}
# Columns of a plain line that come first, with the width that keeps them under each other; others follow as they come.
WIDTHS = {
    "loss": 13, "accuracy": 15, "lr": 12, "grad_norm": 17, "examples_per_s": 18, "tokens_per_s": 18, "mfu": 10,
    "clients": 11, "failed": 9, "bytes_up": 11, "bytes_down": 13,
}  # fmt: skip
LOUD = {"warning", "worker_failed"}
WIDTH = 80
LONGEST_ERROR = 2000  # characters: an error may name a key or a text of any length


class Console(ABC):
    """Where a command's words go. Every method may be called at any time, in any order."""

    @staticmethod
    def choose(json: bool = False, quiet: bool = False) -> "Console":
        """JSON lines if asked for; a live table on a terminal that can redraw; else plain lines.

        `quiet` leaves out everything but warnings, errors and the last lines; it does not shorten JSON.
        """
        if json:
            return JsonConsole()
        if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not quiet:
            from hanse.live import LiveConsole

            return LiveConsole()
        return PlainConsole(quiet)

    @abstractmethod
    def header(self, title: str, fields: Mapping[str, object]) -> None:
        """The command and what it works on: model, data, device, seed."""

    @abstractmethod
    def progress(self, record: Mapping[str, Any]) -> None:
        """One report: {"step": 10, "steps": 600, "split": "train", "loss": 2.1, "examples_per_s": 51000.0, ...}.

        Units are read from the keys: `_s`, `_bytes`, `_per_s`. `"best": True` marks the best validation so far.
        """

    @abstractmethod
    def event(self, name: str, /, **fields: object) -> None:
        """Something that happened: resumed, checkpoint, worker_failed, note, warning.

        `message` is shown first; a field of several lines, such as a traceback, is shown below.
        """

    @abstractmethod
    def say(self, *lines: str, style: str = "") -> None:
        """Lines for a person, as they are; `style` is for a terminal. Not in JSON: programs get events and rows."""

    @abstractmethod
    def rows(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """A table, all rows with the same keys; in JSON one event `name` per row."""

    @abstractmethod
    def end(
        self,
        run: str | PurePath | None,
        summary: Mapping[str, Any],
        next_commands: Sequence[str] = (),
        file: PurePath | None = None,
    ) -> None:
        """The last words: the result, the run's path, the file that was asked for, the next command to type."""

    @abstractmethod
    def error(self, message: str, exit_code: int = 1) -> None:
        """One line on standard error: what, where, how to fix it."""

    def close(self) -> None:  # noqa: B027 - most have taken nothing that they could give back
        """Gives the terminal back. Calling it twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PlainConsole(Console):
    """One dense line per report, with columns that stay where they are."""

    def __init__(self, quiet: bool = False, out: TextIO | None = None) -> None:
        self._quiet = quiet
        self._out = out
        self._totals: dict[str, Any] = {}

    def header(self, title: str, fields: Mapping[str, object]) -> None:
        if not self._quiet:
            self._print(title, *field_lines(fields))

    def progress(self, record: Mapping[str, Any]) -> None:
        self._totals |= {key: record[key] for key in COUNTERS.values() if key in record}
        if not self._quiet:
            self._print(progress_line({**self._totals, **record}))

    def event(self, name: str, /, **fields: object) -> None:
        if not self._quiet or name in LOUD:
            self._print(*event_lines(name, fields))

    def say(self, *lines: str, style: str = "") -> None:
        self._print(*lines)

    def rows(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        self._print(*columns(rows))

    def end(
        self,
        run: str | PurePath | None,
        summary: Mapping[str, Any],
        next_commands: Sequence[str] = (),
        file: PurePath | None = None,
    ) -> None:
        self._print(*end_lines(run, summary, next_commands, file))

    def error(self, message: str, exit_code: int = 1) -> None:
        print(error_line(message), file=sys.stderr, flush=True)

    def _print(self, *lines: str) -> None:
        _write("\n".join([*map(printable_lines, lines), ""]), self._out or sys.stdout)  # in one piece, as below


class JsonConsole(Console):
    """Every line on standard output is one JSON object with a key `event`; the last is `end` (or `error`).

    Inside `with`, what other code prints goes to standard error, so that it cannot come between.
    """

    def __init__(self) -> None:
        self._out = sys.stdout
        self._redirect = redirect_stdout(sys.stderr)

    def __enter__(self) -> Self:
        self._redirect.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._redirect.__exit__(kind, error, trace)

    def header(self, title: str, fields: Mapping[str, object]) -> None:
        self._print({"event": "start", "title": title, **fields})

    def progress(self, record: Mapping[str, Any]) -> None:
        self._print({"event": "progress", **record})

    def event(self, name: str, /, **fields: object) -> None:
        self._print({"event": name, **fields})

    def say(self, *lines: str, style: str = "") -> None:
        pass

    def rows(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        for row in rows:
            self.event(name, **row)

    def end(
        self,
        run: str | PurePath | None,
        summary: Mapping[str, Any],
        next_commands: Sequence[str] = (),
        file: PurePath | None = None,
    ) -> None:
        written = {} if file is None else {"file": str(file)}
        self._print({"event": "end", "run": None if run is None else str(run), **written, "summary": summary})

    def error(self, message: str, exit_code: int = 1) -> None:
        self._print({"event": "error", "message": one_line(message), "exit_code": exit_code})
        print(error_line(message), file=sys.stderr, flush=True)

    def _print(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(jsonable(record), allow_nan=False) + "\n"
        _write(line, self._out)  # in one piece: Ctrl-C is reported from a thread of its own


def _write(text: str, out: TextIO) -> None:
    """Writes to whoever listens; when `| head` has read enough, a training goes on unheard."""
    try:
        print(text, end="", file=out, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out.fileno())  # so that what is buffered, and what Python flushes at its end, goes there too
        os.close(nowhere)


def jsonable(value: Any) -> Any:
    """The value in JSON's types: NaN and infinities become null, a 0-d tensor its number, anything else its text."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return jsonable(value.item())
    return str(value)


def counter(record: Mapping[str, Any]) -> tuple[str, int, int | None]:
    """What a record counts: (name, how far, of how many or None); ("", 0, None) if nothing."""
    for name, total in COUNTERS.items():
        if name in record:
            return name, record[name], record.get(total)
    return "", 0, None


def readings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says beyond where it stands, the well-known keys first."""
    name, _, _ = counter(record)
    place = {name, COUNTERS.get(name), "split", "best", *UNSAID}
    keys = sorted((key for key in record if key not in place), key=lambda key: key not in WIDTHS)
    return {key: record[key] for key in keys if record[key] is not None}


def progress_line(record: Mapping[str, Any]) -> str:
    """`step  10/600  train       loss 2.103  lr 0.003  ...`."""
    name, done, total = counter(record)
    width = len(number(total)) if total else 6
    place = f"{name} {number(done):>{width}}{f'/{number(total)}' if total else ''}" if name else ""
    said = [f"{labeled(key, value):<{WIDTHS.get(key, 0)}}" for key, value in readings(record).items()]
    mark = ["best"] if record.get("best") else []
    return "  ".join([place, f"{record.get('split', ''):<10}", *said, *mark]).rstrip()


def field_lines(fields: Mapping[str, object]) -> list[str]:
    """Two fields to a line where both fit into 80 columns, else one, their names under each other."""
    name_width = max((len(name) for name in fields), default=0)
    cells = [printable(f"{name:<{name_width}}  {value}") for name, value in fields.items()]
    half = WIDTH // 2 - 2
    lines: list[str] = []
    is_open = False  # the last line has room for a second field
    for cell in cells:
        fits = len(cell) <= half
        if is_open and fits:
            lines[-1] = f"{lines[-1]:<{half + 4}}{cell}"
        else:
            lines.append(f"  {cell}")
        is_open = fits and not is_open
    return lines


def event_lines(name: str, fields: Mapping[str, object]) -> list[str]:
    """`warning: message  key value`, and below it, indented, every field that has several lines."""
    short = {key: value for key, value in fields.items() if "\n" not in str(value)}
    message = short.pop("message", None)
    first = "  ".join([name.replace("_", " "), *(labeled(key, value) for key, value in short.items())])
    if message is not None:
        first = "  ".join([f"{name.replace('_', ' ')}: {message}", *(labeled(key, v) for key, v in short.items())])
    blocks = [str(value).rstrip() for key, value in fields.items() if key not in short and key != "message"]
    if message is None and "message" in fields:
        blocks.insert(0, str(fields["message"]).rstrip())
    return [first, *(textwrap.indent(block, "  | ") for block in blocks)]


def end_lines(
    run: str | PurePath | None, summary: Mapping[str, Any], next_commands: Sequence[str], file: PurePath | None = None
) -> list[str]:
    """Result, run, file and next command, each with its name in front."""
    said = [labeled(key, value) for key, value in flat(summary).items()]
    together = "  ".join(text.replace(" ", "\0") for text in said)
    result = textwrap.wrap(together, WIDTH - 8, break_on_hyphens=False) or ["done"]
    parts = {
        "result": [line.replace("\0", " ") for line in result],
        "run": [] if run is None else [str(run)],
        "file": [] if file is None else [str(file)],
        "next": list(next_commands),
    }
    return [f"{name if i == 0 else '':<8}{line}" for name, lines in parts.items() for i, line in enumerate(lines)]


def flat(summary: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The numbers and words of a nested summary: {"test": {"loss": 1.0}} -> {"test loss": 1.0}; lists stay out."""
    found: dict[str, Any] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key} ")
        elif isinstance(value, str | int | float):
            found[f"{prefix}{key}"] = value
    return found


def printable_lines(text: str) -> str:
    """Text as it may go to a terminal: line breaks stay, escape sequences do not."""
    return printable(text, keep="\n")


def one_line(message: str) -> str:
    return " ".join(message.split())


def error_line(message: str) -> str:
    return cut(printable(f"hanse: {one_line(message)}"), LONGEST_ERROR)
