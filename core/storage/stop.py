"""A request to stop, as a file in a run's logs/: how the process that the user talks to reaches its workers."""

from pathlib import Path


class StopRequest:
    """Asked by one process, seen by all that see the run directory."""

    def __init__(self, logs: Path) -> None:
        self._file = logs / "stop-requested"

    def clear(self) -> None:
        """Forgets what was asked in an earlier part of the run."""
        self._file.unlink(missing_ok=True)

    def ask(self) -> None:
        """Asks the workers to finish their step and end."""
        self._file.touch()

    def __call__(self) -> bool:
        """Whether it was asked."""
        return self._file.exists()
