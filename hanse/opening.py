"""A run's directory: a new one, or an old one to go on in, if the run is still the same."""

import dataclasses
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from core.config import dump_run, parse_run, read
from core.errors import ConfigError
from core.storage.path import user_path
from core.storage.store import Run, RunDirectory, find_run, is_run, run_at, runs_root

R = TypeVar("R")  # a run: it has recipe, run_dir, resume, init, workers


@dataclass(frozen=True)
class Resume:
    """What a run that resumes may change: the dotted keys `free` and its own fields `where`, nothing else. `may_grow`
    says what in an error. `require` raises ConfigError if the run asks for less than the old one has done."""

    free: Collection[str]
    where: Collection[str]
    may_grow: str
    require: Callable[[Any, Run], None]


def open_run(run: R, verb: str, resume: Resume) -> tuple[RunDirectory, R]:
    """A new directory, or the one to resume in; and the run, with the `init` that the old one began with.

    Raises ConfigError, and changes nothing, if the run is not the old one with the changes that `resume` allows.
    """
    own: Any = run
    if isinstance(own.resume, str):
        return _reopen(_old(own.resume, verb), run, resume, verb)
    workers = dump_run(run)["workers"] if getattr(own, "engine", "pool") == "pool" else 0
    origin = {**origin_of(verb, own.recipe.seed), "init": own.init, "workers": workers}
    if own.run_dir is None:
        return RunDirectory.create(runs_root(), own.recipe.name, **origin), run
    path = user_path(own.run_dir, "run_dir")
    if own.resume and is_run(path):
        return _reopen(path, run, resume, verb)
    return RunDirectory.create(path, **origin), run


def origin_of(verb: str, seed: int) -> dict[str, Any]:
    """What run.json says of how any run began."""
    return {
        "verb": verb,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": seed,
        "versions": _versions(),
        "cpus": os.cpu_count(),
    }


def _versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("hanse", "torch", "ray", "flwr")}
    return {**versions, "python": ".".join(map(str, sys.version_info[:3]))}


def saved_init(run: Any, verb: str) -> str | None:
    """What the run began with that is to be gone on with; None if it began with nothing, or is a new one."""
    path = None
    if isinstance(run.resume, str):
        path = _old(run.resume, verb)
    elif run.resume and run.run_dir is not None and is_run(user_path(run.run_dir, "run_dir")):
        path = user_path(run.run_dir, "run_dir")
    if path is None or not (path / "config.yaml").is_file():
        return None
    saved: Any = parse_run(type(run), read(path / "config.yaml"))
    return str(saved.init) if saved.init else None


def _old(reference: str, verb: str) -> Path:
    """The directory of the run to resume; the newest of its verb for `latest`."""
    return find_run(runs_root(), reference, lambda run: run.record.get("verb") == verb).path


def _reopen(path: Path, run: R, resume: Resume, verb: str) -> tuple[RunDirectory, R]:
    file, own = path / "config.yaml", type(run)
    if file.is_file():  # else it was killed in its first moment, before anything was trained
        saved: Any = parse_run(own, read(file))
        _require_same(saved, run, file, resume)
        _require_same_init(saved.init, getattr(run, "init"), file)  # noqa: B009 - a TypeVar has no attributes
        run = dataclasses.replace(run, init=saved.init)  # type: ignore[type-var]
        resume.require(run, run_at(path))
    return RunDirectory.open(path, **origin_of(verb, getattr(run, "recipe").seed)), run  # noqa: B009 - as above


def _require_same(saved: R, run: R, file: Path, resume: Resume) -> None:
    old, new = dict(_leaves(dump_run(saved))), dict(_leaves(dump_run(run)))
    for key in [*old, *new]:
        was, now = (repr(config[key]) if key in config else "absent" for config in (old, new))
        if was == now or key in resume.free or key.partition(".")[0] in resume.where:
            continue
        other = f" ({resume.may_grow}), or start a new run with init=" if resume.may_grow else ", or start a new run"
        raise ConfigError(
            f"{key}: is {now}, and was {was} when this run began ({file}); resume with the same recipe{other}"
        )


def _require_same_init(saved: str | None, init: str | None, file: Path) -> None:
    if init is None or (saved is not None and Path(init).resolve() == Path(saved).resolve()):
        return
    raise ConfigError(
        f"init: is {init!r}, and was {saved!r} when this run began ({file}); a resumed run goes on from its "
        "own checkpoints; leave init out, or start a new run with it"
    )


def _leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
