"""Files that several tests of the commands use."""

from pathlib import Path

import pytest

from core.data.sources.bundled import read_table


@pytest.fixture
def config(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The CONFIG of a test's module, as a file."""
    path = tmp_path / "digits.yaml"
    path.write_text(request.module.CONFIG)
    return path


@pytest.fixture
def wines(tmp_path: Path) -> Path:
    """The bundled wines as a user's csv, the class in the first column."""
    table, path = read_table("wine"), tmp_path / "wines.csv"
    lines = [",".join(["target", *table.columns])]
    for row, target in zip(table.inputs, table.targets, strict=True):
        lines.append(",".join([table.classes[int(target)], *map(str, row)]))
    path.write_text("\n".join(lines) + "\n")
    return path
