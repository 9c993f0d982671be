"""The Python API: the verbs of the `hanse` command as functions. Errors are `core.errors.HanseError`, one line each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanse import inference, launch, writer
from hanse.console import Console
from hanse.inference import Evaluation, Prediction


@dataclass(frozen=True)
class Trained:
    """run: its directory; summary: what summary.json holds. `summary["ended"]` is done, early or stopped (Ctrl-C)."""

    run: Path
    summary: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """On the held-out split that training never saw; empty if the run was stopped."""
        return dict(self.summary.get("metrics", {}))


def train(
    config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, quiet: bool = False
) -> Trained:
    """Trains a config file (or a mapping of the same keys) with dotted overrides: `{"train.steps": 50, "workers": 2}`.

    Shows what `hanse train` shows, or nothing but warnings if `quiet`.
    """
    run = launch.parse_train(config, overrides or {})
    with Console.choose(quiet=quiet) as console:
        path, summary = launch.train(run, console)
    return Trained(path, summary)


def evaluate(model: str | Path, overrides: Mapping[str, Any] | None = None) -> Evaluation:
    """Scores the model of a run, by name or path, on its held-out split, or on `{"data.path": FILE}`."""
    return inference.evaluate(inference.load_model(model), overrides)


def predict(model: str | Path, data: str | Path, overrides: Mapping[str, Any] | None = None) -> list[Prediction]:
    """One answer per row of a file: {"row", "class", "probability"} or {"row", "value"}."""
    return inference.predict(inference.load_model(model), {"data.path": str(data), **(overrides or {})})


def generate(model: str | Path, prompt: str, **options: Any) -> str:
    """The text with which a language model goes on from a prompt; options are those of `hanse.writer.Writing`."""
    from core.config import parse

    writing = parse(writer.Writing, {"prompt": prompt, **options})
    return "".join(writer.write(inference.load_model(model), writing))
