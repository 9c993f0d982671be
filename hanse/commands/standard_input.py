"""Rows from standard input, `data.path=-`: kept in a file of their own for as long as a command reads them."""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.errors import ConfigError, DataError, HanseError

STANDARD_INPUT = "-"
MARKS = {b"PAR1": ".parquet", b"\x1f\x8b": ".csv.gz"}  # how such a file begins
NAME = "standard input"  # what messages call it
Said = Callable[[str], str]


@contextmanager
def rows_given(overrides: Mapping[str, Any], kind: str) -> Iterator[tuple[Mapping[str, Any], Said]]:
    """The overrides with a file as `data.path`, and what says its right name in messages. kind: of the model's data.

    Raises ConfigError if that is no table, DataError if nothing comes in; errors from inside get the right name.
    """
    if overrides.get("data.path") != STANDARD_INPUT:
        yield overrides, str
        return
    if kind != "table":
        raise ConfigError(f"data.path: - means rows of a table from {NAME}; this model takes {kind} data, name a file")
    with TemporaryDirectory(prefix="hanse-") as folder:
        file = _kept(Path(folder))

        def said(text: str) -> str:
            return text.replace(str(file), NAME)

        try:
            yield {**overrides, "data.path": str(file)}, said
        except HanseError as error:
            raise type(error)(said(str(error))) from None


def _kept(folder: Path) -> Path:
    """What comes in, as the kind of file that its first bytes say: parquet, json or jsonl, or csv, packed or not."""
    content = sys.stdin.buffer
    head = content.read(4096)
    if not head:
        raise DataError(f"data.path: nothing came from {NAME}")
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    ending = ".json" if first in (b"{", b"[") else ".csv"
    ending = next((kind for mark, kind in MARKS.items() if head.startswith(mark)), ending)
    file = folder / f"input{ending}"
    with file.open("wb") as kept:
        kept.write(head)
        shutil.copyfileobj(content, kept)
    return file
