"""What a run has left in its directory."""

import json
from pathlib import Path
from typing import Any


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def lines(path: Path, **wanted: object) -> list[dict[str, Any]]:
    """The records of a file that have these values."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [record for record in records if wanted.items() <= record.items()]
