"""`hanse predict MODEL data.path=FILE [out=FILE] [samples=N]`: a class with its probability, or a value, per row."""

import os
from collections.abc import Sequence
from pathlib import Path

from core.config import read_overrides
from core.errors import ConfigError, ResourceError
from core.storage.atomic import replace_text
from hanse.console import Console, JsonConsole
from hanse.inference import as_text, load_models, predict, read_passes

SHOWN = 20  # rows on the screen


def run(reference: str, words: Sequence[str], console: Console) -> int:
    """Writes the answers to `out`, else shows the first of them."""
    overrides = read_overrides(words)
    out = overrides.pop("out", None)
    file = None if out is None else Path(os.path.expanduser(str(out)))
    if file is not None and file.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"out: should end in .csv or .jsonl, got {out!r}")
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise ConfigError(
            f"out: {file} cannot be written: {file.parent} is no directory, or the file is one; make it first"
        )
    passes = read_passes(overrides)
    answers = predict(load_models(reference), overrides, passes, lambda note: console.event("note", message=note))
    if file is not None:
        try:
            replace_text(file, as_text(answers, file.suffix))
        except OSError as error:
            raise ResourceError(f"out: {file} cannot be written: {error.strerror}; name another place") from error
        console.end(file, {"rows": len(answers)})
        return 0
    shown = answers if isinstance(console, JsonConsole) else answers[:SHOWN]
    console.rows("prediction", shown)
    again = " ".join(["hanse predict", reference, *words, "out=answers.csv"])
    console.end(None, {"rows": len(answers), "shown": len(shown)}, [again])
    return 0
