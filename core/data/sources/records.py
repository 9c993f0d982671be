"""Objects of names and values: one a line in a jsonl file, or all of them in a json file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from core.data.sources.contents import kind_of, text_file
from core.errors import DataError, blamed

Record = dict[str, Any]
ENDINGS = (".jsonl", ".ndjson", ".json")


class Records(NamedTuple):
    """The objects of a file, each with its number from 1, which counts lines or records, as `unit` says."""

    unit: str
    numbered: list[tuple[int, Record]]


def read_records(path: Path) -> Records:
    """Every record of the file. DataError names the first that is none."""
    with text_file(path) as file:
        first = next((line for line in file if line.strip()), "").lstrip()
    if kind_of(path) == ".json" and not _is_line(first):
        return Records("record", list(_of_document(path)))
    return Records("line", list(_of_lines(path)))


def _is_line(text: str) -> bool:
    """Whether it is an object by itself: many files called .json hold one a line."""
    if not (text.startswith("{") and text.endswith("\n")):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _of_lines(path: Path) -> Iterator[tuple[int, Record]]:
    with text_file(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _object(path, f"line {number}", _parsed(path, f"line {number}", line))


def _of_document(path: Path) -> Iterator[tuple[int, Record]]:
    with text_file(path) as file:
        content = _parsed(path, "the document", file.read())
    if isinstance(content, dict):
        content = _rows(path, content)
    if not isinstance(content, list):
        raise DataError(f"{path}: holds a {type(content).__name__}; need a list of objects, or one object a line")
    for number, record in enumerate(content, 1):
        yield number, _object(path, f"record {number}", record)


def _rows(path: Path, columns: dict[str, Any]) -> list[Record]:
    """The rows of columns that are lists, or objects by row as pandas writes them; an object alone is one row."""
    values = list(columns.values())
    if values and all(isinstance(value, dict) for value in values):
        columns = {name: list(value.values()) for name, value in columns.items()}
    elif not values or not all(isinstance(value, list) for value in values):
        return [columns]
    if len({len(value) for value in columns.values()}) > 1:
        raise DataError(f"{path}: its columns are of different lengths; need a list of objects, or one object a line")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _parsed(path: Path, where: str, text: str) -> Any:
    with blamed(DataError, f"{path}: {where}", "not valid JSON"):
        value = json.loads(text)
        if "\\u" in text:  # half a character may be written so, and no text holds it
            json.dumps(value, ensure_ascii=False).encode()
        return value


def _object(path: Path, where: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{path}: {where}: not a JSON object but a {type(value).__name__}")
    return value
