"""Small files of run and model directories, read with one line for whatever is wrong. Standard library only."""

import json
import stat
from pathlib import Path
from typing import Any

from core.errors import DataError, blamed

MOST_BYTES = 256 << 20  # of a file that is read as a whole; a large tokenizer takes 30 MB


def read_bytes(path: Path, missing: str = "") -> bytes:
    """The content of a file. DataError if there is none (`missing` says where it lies), or it is none or too large."""
    with blamed(DataError, str(path)):
        try:
            found = path.stat()
        except FileNotFoundError:
            raise DataError(f"{path}: no such file{f'; {missing}' if missing else ''}") from None
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path}: is not a file")
        if found.st_size > MOST_BYTES:
            raise DataError(f"{path}: holds {found.st_size:,} bytes, at most {MOST_BYTES:,} are read; it is damaged")
        return path.read_bytes()


def read_text(path: Path, missing: str = "") -> str:
    """The same as text in UTF-8."""
    content = read_bytes(path, missing)
    with blamed(DataError, str(path)):
        return content.decode("utf-8")


def read_json(path: Path, missing: str = "") -> dict[str, Any]:
    """The same as a JSON object."""
    content = read_bytes(path, missing)
    with blamed(DataError, str(path), "is not whole JSON", "its writing was cut short, or it was changed"):
        value = json.loads(content)
    if not isinstance(value, dict):
        raise DataError(f"{path}: is not a JSON object")
    return value
