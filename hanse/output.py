"""The file that `out=` names: refused before anything is computed if it must not be written, and written as a whole.

What a command reads is never replaced; another file that is there only with --force.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError, ResourceError
from core.storage.atomic import replace_text
from core.storage.path import user_path


@dataclass(frozen=True)
class Output:
    """A file that may be written. `force`: also where there is one."""

    path: Path
    force: bool

    @property
    def ending(self) -> str:
        """What the file will hold: `.csv`, `.html`, ..."""
        return self.path.suffix.lower()

    def write(self, text: str) -> Path:
        """Writes it and returns its path. Raises ConfigError if there is one by now, ResourceError if it fails."""
        _refuse_existing(self.path, self.force)
        try:
            replace_text(self.path, text)
        except OSError as error:
            message = f"out: {self.path} cannot be written: {error.strerror}; name another place"
            raise ResourceError(message) from error
        return self.path


def output(out: object, endings: Sequence[str], force: bool, reads: Iterable[object] = ()) -> Output | None:
    """The file that `out` names; None if it names none. `reads`: the files that the command reads.

    Raises ConfigError for another ending, a place that is none, a file that is read, or one that is there.
    """
    if out is None:
        return None
    path = user_path(str(out), "out")
    if path.suffix.lower() not in endings:
        several = f"{', '.join(endings[:-1])} or {endings[-1]}" if len(endings) > 1 else endings[0]
        raise ConfigError(f"out: should end in {several}, got {str(out)!r}")
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(
            f"out: {path} cannot be written: {path.parent} is no directory, or the file is one; make it first"
        )
    for read in reads:
        if _is_same(path, user_path(str(read), "data.path")):
            raise ConfigError(f"out: {path} is a file that this command reads; name another file")
    _refuse_existing(path, force)
    return Output(path, force)


def _is_same(one: Path, other: Path) -> bool:
    """Whether both names mean one file, by links too."""
    return one.exists() and other.exists() and one.samefile(other)


def _refuse_existing(path: Path, force: bool) -> None:
    if not force and os.path.lexists(path):
        raise ConfigError(f"out: {path} exists; name another file, or replace it with --force")


def rows_as_text(rows: Sequence[Mapping[str, Any]], ending: str) -> str:
    """Rows with the same keys as the content of a file: one JSON object a line for `.jsonl`, else csv."""
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
