"""`hanse evaluate MODEL [data.path=FILE] [samples=N] [out=FILE.html]`: how good a model is on data it has not seen."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from core.config import read_overrides
from hanse.commands.standard_input import rows_given
from hanse.commands.train import headline
from hanse.console import Console, JsonConsole
from hanse.find import find_model
from hanse.inference import Evaluation, evaluate, load_models, read_passes
from hanse.output import output
from hanse.report import evaluation_page
from hanse.report.calibration import NAMES

LARGEST = 12  # classes of a confusion matrix that still fits a terminal


def run(reference: str, words: Sequence[str], force: bool, console: Console) -> int:
    """The metrics, how sure the predictions are, and for a classifier which class is taken for which."""
    overrides = read_overrides(words)
    page = output(overrides.pop("out", None), (".html",), force, [overrides.get("data.path")])
    passes = read_passes(overrides)
    directory, models = find_model(reference), load_models(reference)
    with rows_given(overrides, models[0].spec.kind) as (given, named):
        found = evaluate(models, given, passes)
    found = replace(found, source=named(found.source), notes=tuple(map(named, found.notes)))
    summary = asdict(found)
    text = evaluation_page(models[0].recipe.name, {**summary, "model": str(directory)}) if page else ""
    file = page.write(text) if page else None
    fields: dict[str, object] = {"model": str(directory), "data": found.source}
    if said := _voices(len(models), passes.samples):
        fields["voices"] = said
    console.header(f"hanse evaluate  {models[0].recipe.name}", fields)
    for note in found.notes:
        console.event("note", message=note)
    console.rows("metric", [_metric(name, value, found) for name, value in found.metrics.items()])
    classes, matrix = found.details.get("classes", ()), found.details.get("confusion", [])
    if 0 < len(matrix) <= LARGEST:
        names = [str(name) for name in classes or range(len(matrix))]
        console.rows("confusion", [_line(name, names, row) for name, row in zip(names, matrix, strict=True)])
    sure = [(name, found.uncertainty[key]) for key, name in NAMES.items() if key in found.uncertainty]
    console.rows("uncertainty", [{"uncertainty": name, "value": value} for name, value in sure])
    if isinstance(console, JsonConsole):
        console.end(directory, summary, file=file)
        return 0
    is_text = models[0].spec.target == "token"
    model = shlex.quote(reference)
    more = f'generate {model} prompt="The "' if is_text else f"predict {model} data.path=FILE out=answers.csv"
    console.end(directory, {found.split: headline(summary), "examples": found.examples}, [f"hanse {more}"], file)
    return 0


def _voices(models: int, samples: int) -> str:
    members = f"{models} members" if models > 1 else ""
    passes = f"{samples} passes with dropout" if samples else ""
    return " x ".join(filter(None, (members, passes)))


def _metric(name: str, value: float, found: Evaluation) -> Mapping[str, Any]:
    """One metric; of an ensemble beside it how the members do alone."""
    if not found.members:
        return {"metric": name, "value": value}
    alone = found.spread.get(name)
    return {
        "metric": name,
        "ensemble": value,
        "member_mean": alone.mean if alone else None,
        "member_std": alone.std if alone else None,
    }


def _line(name: str, names: Sequence[str], row: Sequence[float]) -> Mapping[str, Any]:
    """One true class: how often each class was predicted."""
    counts = (int(count) if count.is_integer() else count for count in row)  # example weights may make parts of one
    return {"true class": name, **dict(zip(names, counts, strict=True))}
