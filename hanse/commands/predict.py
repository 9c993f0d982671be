"""`hanse predict MODEL data.path=FILE [out=FILE] [samples=N]`: a class with its probability, or a value, per row."""

import shlex
from collections.abc import Sequence

from core.config import read_overrides
from hanse.commands.standard_input import rows_given
from hanse.console import Console, JsonConsole
from hanse.find import find_model
from hanse.inference import load_models, predict, read_passes
from hanse.output import output, rows_as_text

SHOWN = 20  # rows on the screen


def run(reference: str, words: Sequence[str], force: bool, console: Console) -> int:
    """Writes the answers to `out`, else shows the first of them."""
    overrides = read_overrides(words)
    out = output(overrides.pop("out", None), (".csv", ".jsonl"), force, [overrides.get("data.path")])
    passes = read_passes(overrides)
    directory, models = find_model(reference), load_models(reference)
    with rows_given(overrides, models[0].spec.kind) as (given, named):
        answers = predict(models, given, passes, lambda note: console.event("note", message=named(note)))
    if out is not None:
        console.end(directory, {"rows": len(answers)}, file=out.write(rows_as_text(answers, out.ending)))
        return 0
    shown = answers if isinstance(console, JsonConsole) else answers[:SHOWN]
    console.rows("prediction", shown)
    again = shlex.join(["hanse", "predict", reference, *words, "out=answers.csv"])
    console.end(directory, {"rows": len(answers), "shown": len(shown)}, [again])
    return 0
