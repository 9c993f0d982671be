"""`hanse evaluate MODEL [data.path=FILE]`: how good a model is on data it has not seen."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.config import read_overrides
from hanse.commands.train import headline
from hanse.console import Console, JsonConsole
from hanse.format import number
from hanse.inference import evaluate, load_model

LARGEST = 12  # classes of a confusion matrix that still fits a terminal


def run(reference: str, words: Sequence[str], console: Console) -> int:
    """The metrics, and for a classifier which class is taken for which."""
    overrides = read_overrides(words)
    model = load_model(reference)
    found = evaluate(model, overrides)
    console.header(f"hanse evaluate  {model.recipe.name}", {"model": str(model.directory), "data": found.source})
    console.rows("metric", [{"metric": name, "value": number(value)} for name, value in found.metrics.items()])
    classes, matrix = found.details.get("classes", ()), found.details.get("confusion", [])
    if 0 < len(matrix) <= LARGEST:
        names = [str(name) for name in classes or range(len(matrix))]
        console.rows("confusion", [_line(name, names, row) for name, row in zip(names, matrix, strict=True)])
    summary: dict[str, Any] = {"split": found.split, "examples": found.examples, "metrics": found.metrics}
    if isinstance(console, JsonConsole):
        console.end(model.directory, {**summary, "details": found.details})
        return 0
    more = 'generate {} prompt="The "' if model.spec.target == "token" else "predict {} data.path=FILE out=answers.csv"
    shown = {found.split: headline(summary), "examples": found.examples}
    console.end(model.directory, shown, [f"hanse {more.format(reference)}"])
    return 0


def _line(name: str, names: Sequence[str], row: Sequence[float]) -> Mapping[str, Any]:
    """One true class: how often each class was predicted."""
    return {"true": name, **{other: f"{count:g}" for other, count in zip(names, row, strict=True)}}
