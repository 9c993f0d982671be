"""The model that a word on the command line means: a run's name, a run directory or a model directory."""

from pathlib import Path

from core.errors import DataError
from core.storage.path import user_path
from core.storage.store import Run, find_run, is_run, run_at, runs_root


def find_model(reference: str | Path) -> Path:
    """The model directory that a run's name, a run directory or a model directory means. Raises DataError."""
    path = user_path(reference, "model")
    if (path / "config.json").is_file():
        return path
    if path.is_dir() and not is_run(path):
        raise DataError(f"{path}: neither a run nor a model directory: it has no run.json and no config.json")
    run = run_at(path) if is_run(path) else find_run(runs_root(), str(reference), _has_model)
    if not _has_model(run):
        name = f"{reference} ({run.id})" if reference == "latest" else reference
        raise DataError(f"{name}: this run has no model yet: {_why_no_model(run)}")
    return run.path / "model"


def _has_model(run: Run) -> bool:
    return (run.path / "model" / "config.json").is_file()


def _why_no_model(run: Run) -> str:
    if run.record.get("verb") == "federate-trees":
        return "it grew trees, which lie in model/booster.json; docs/federated_trees.md shows how they predict"
    if run.status == "running":
        return "it is running; wait for its end"
    if run.status == "failed":
        return f"it failed: {run.record.get('error')}"
    verb = "federate simulate" if run.record.get("verb") == "federate" else "train"
    return f"it is {run.status}; finish it with `hanse {verb} FILE resume={run.id}`"
