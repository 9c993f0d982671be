"""The checkpoints of a directory by their names alone. Standard library only."""

import re
from pathlib import Path

_STEP = re.compile(r"step-(\d{6,})")


def is_step(name: str) -> bool:
    """Whether a checkpoint has such a name."""
    return _STEP.fullmatch(name) is not None


def step_of(path: Path) -> int:
    """The step of a checkpoint's directory."""
    return int(path.name.removeprefix("step-"))


def steps(directory: Path) -> list[Path]:
    """The checkpoints of a directory by rising step. Other files, and those under a temporary name, do not count."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if is_step(path.name) and path.is_dir()), key=step_of)


def has_checkpoints(run: Path) -> bool:
    """Whether a run directory holds a checkpoint: of the run, or of one of its members."""
    places = run / "checkpoints"
    return places.is_dir() and any(map(steps, [places, *(path for path in places.iterdir() if path.is_dir())]))
