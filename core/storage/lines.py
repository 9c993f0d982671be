"""Files of one JSON object a line: appended to by one process, and followed by another. Standard library only."""

import json
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from core.errors import DataError

Record = dict[str, Any]
LOGS = ("events.jsonl", "metrics.jsonl")


class Follower:
    """The records that another process adds to a run's events and metrics, in the order of each file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = {name: _size(path / name) for name in LOGS}

    def new(self) -> list[Record]:
        """What came since the last call, events first. Lines that are not whole yet come with the next call."""
        records = []
        for event in self._read("events.jsonl"):
            records.append(event)
            if event.get("event") == "started":  # metrics.jsonl was rewritten without the steps that are done again
                records_now = read_lines(self._path / "metrics.jsonl")
                kept = [record for record in records_now if stays(record, "step", event["step"])]
                self._at["metrics.jsonl"] = sum(len(line_of(record)) for record in kept)
        return records + self._read("metrics.jsonl")

    def _read(self, name: str) -> list[Record]:
        path = self._path / name
        if _size(path) <= self._at[name]:
            return []
        with path.open("rb") as file:
            file.seek(max(0, self._at[name] - 1))
            if self._at[name] and file.read(1) != b"\n":
                return []  # another file of that name by now; the event that says so comes with the next call
            whole, newline, _ = file.read().rpartition(b"\n")
        self._at[name] += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines()]


def read_lines(path: Path) -> list[Record]:
    """The records in order, without a torn last line. Raises DataError if one is damaged."""
    if not path.is_file():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: is not a JSON object; the file was changed or damaged, remove the line")
        records.append(record)
    return records


def stays(record: Record, counter: str, done: int, again: Collection[str] = ("test",)) -> bool:
    """Whether a run that resumes after `done` steps or rounds keeps this record: it does not write it a second time.

    `again`: the splits that are scored again where it resumes. The final ones always are: it comes to its end again.
    """
    at = record.get(counter, 0)
    return bool(at < done or (at == done and record.get("split") not in again))


def line_of(record: Record) -> bytes:
    """A record as it stands in a file."""
    return json.dumps(finite(record)).encode() + b"\n"


def open_log(path: Path) -> int:
    """A file to append to, cut back to its last whole line: a killed writer may have left half of one."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):  # a whole file is left alone: other workers may be adding to it
        os.ftruncate(fd, content.rfind(b"\n") + 1)
    return fd


def finite(value: Any) -> Any:
    """The value with numbers that JSON does not have (NaN, infinities) as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
