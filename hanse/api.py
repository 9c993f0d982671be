"""The Python API: the verbs of the `hanse` command as functions. Errors are `core.errors.HanseError`, one line each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.ensemble.voices import MonteCarlo
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


def simulate(
    config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, quiet: bool = False
) -> Trained:
    """Trains a federation's config file (or a mapping of the same keys), with dotted overrides: `{"rounds": 5}`.

    Shows what `hanse federate simulate` shows, or nothing but warnings if `quiet`.
    """
    from hanse import federate

    run = federate.parse_federate(config, overrides or {})
    with Console.choose(quiet=quiet) as console:
        path, summary = federate.simulate(run, console)
    return Trained(path, summary)


def evaluate(
    model: str | Path, overrides: Mapping[str, Any] | None = None, *, samples: int = 0, seed: int = 0
) -> Evaluation:
    """Scores the model or ensemble of a run, by name or path, on what was held out, or on `{"data.path": FILE}`.

    `samples` (2 or more) passes with dropout left on, addressed by `seed`, show how sure a model is.
    """
    return inference.evaluate(inference.load_models(model), overrides, _passes(samples, seed))


def predict(
    model: str | Path,
    data: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    samples: int = 0,
    seed: int = 0,
) -> list[Prediction]:
    """One answer per row of a file, or picture of a folder: {"row", "class", "probability"} or {"row", "value"}; of
    pictures also {"file"}, of a table its `data.id`.

    An ensemble, or `samples` passes with dropout, add "entropy" and "mutual_information", or "std".
    """
    others = {"data.path": str(data), **(overrides or {})}
    return inference.predict(inference.load_models(model), others, _passes(samples, seed))


def generate(model: str | Path, prompt: str, **options: Any) -> str:
    """The text with which a language model goes on from a prompt; options are those of `hanse.writer.Writing`."""
    from core.config import parse

    writing = parse(writer.Writing, {"prompt": prompt, **options})
    return "".join(writer.write(inference.load_models(model), writing))


def _passes(samples: int, seed: int) -> MonteCarlo:
    from core.config import parse

    return parse(MonteCarlo, {"samples": samples, "seed": seed})
