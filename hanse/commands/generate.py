"""`hanse generate MODEL prompt="..."`: text from a language model, on the screen as it is written."""

import itertools
import sys
from collections.abc import Sequence
from typing import Any

from core.config import parse, read_overrides
from core.errors import ConfigError
from core.printable import printable
from hanse.console import Console, JsonConsole
from hanse.find import find_model
from hanse.inference import load_models
from hanse.writer import Writing, write

TEXTS = ("prompt", "stop")  # taken as they are: a prompt with a colon in it is no YAML


def run(reference: str, words: Sequence[str], console: Console) -> int:
    """Writes prompt and continuation to standard output, and nothing else, so that it can be piped."""
    writing = read_writing(words)
    models = load_models(reference)
    pieces = write(models, writing)
    if isinstance(console, JsonConsole):
        text = []
        for piece in filter(None, pieces):
            text.append(piece)
            console.event("text", text=piece)
        console.end(find_model(reference), {"prompt": writing.prompt, "text": "".join(text)})
        return 0
    if reference == "latest":
        sys.stderr.write(f"model   {find_model(reference)}\n")  # standard output belongs to the text
    keep = "\n\t" if sys.stdout.isatty() else None  # a pipe gets the bytes that the model wrote
    for piece in itertools.chain([writing.prompt], pieces):
        sys.stdout.write(piece if keep is None else printable(piece, keep))
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


def read_writing(words: Sequence[str]) -> Writing:
    """The options. `stop` may be given several times; in texts `\\n` and `\\t` mean what they mean in code."""
    given: dict[str, list[str]] = {name: [] for name in TEXTS}
    others = []
    for word in words:
        key, equals, value = word.partition("=")
        if key in TEXTS and equals:
            given[key].append(value.replace("\\n", "\n").replace("\\t", "\t"))
        else:
            others.append(word)
    options: dict[str, Any] = read_overrides(others)
    writing = parse(Writing, {**options, "prompt": "".join(given["prompt"]), "stop": given["stop"]})
    if len(given["prompt"]) != 1:
        raise ConfigError('prompt: give the text to go on from once, for example prompt="The "')
    return writing
