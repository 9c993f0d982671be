"""What surrounds the work of any run: how it is shown, stopped by Ctrl-C, and recorded however it ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from core.errors import ConfigError, DataError, LostError, ResourceError
from core.runtime import Record
from core.storage.store import RunDirectory, remove
from hanse.console import Console, JsonConsole
from hanse.interrupt import interruptible
from hanse.report import write_report


@contextmanager
def recorded(directory: RunDirectory) -> Iterator[None]:
    """However the run ends, run.json says so and report.html shows it.

    What the user can mend before the first step leaves no directory: the same command then works again.
    """
    try:
        yield
    except (ConfigError, DataError, ResourceError) as error:
        if directory.run.metrics() or any(directory.checkpoints.iterdir()):
            _failed(directory, "failed", error)
        else:
            directory.close()
            with suppress(ResourceError):  # what ended the run is the better thing to say
                remove(directory.run)
        raise
    except BaseException as error:
        if isinstance(error, LostError):
            error.run = directory.path
        _failed(directory, "stopped" if isinstance(error, KeyboardInterrupt) else "failed", error)
        raise
    write_report(directory.path)


def _failed(directory: RunDirectory, status: str, error: BaseException) -> None:
    try:
        directory.finish(status, str(error) or type(error).__name__)
        write_report(directory.path)
    except ResourceError as full:  # a full disk may be what ended it
        error.add_note(f"and run.json or the report could not be written: {full}")


@contextmanager
def stopping(directory: RunDirectory, console: Console, what: str) -> Iterator[Callable[[], bool]]:
    """Yields what tells whether to stop. `what` is said at the first Ctrl-C; the second one ends the process."""

    def first() -> None:
        console.event("stopping", message=f"{what}; Ctrl-C again ends at once")

    def abort() -> None:
        directory.finish("stopped", "aborted by a second signal")
        console.close()

    if directory.restored:
        console.event("warning", message=directory.restored)
    with interruptible(first, abort) as asked:
        yield asked


def reporting(directory: RunDirectory, show: Callable[[Record], None]) -> Callable[[Record], None]:
    """Takes each record of the work: it is kept in the run directory, and shown."""

    def report(record: Record) -> None:
        directory.record(record)
        show(record)

    return report


def shown(console: Console) -> Callable[[Record], None]:
    """Shows each record: an event, or a line of progress."""

    def show(record: Record) -> None:
        if record.get("event") == "started" and not record["step"] and not isinstance(console, JsonConsole):
            return  # the first line of progress says as much
        if "event" in record:
            fields = {key: value for key, value in record.items() if key not in ("event", "time")}
            console.event(str(record["event"]), **fields)
        else:
            console.progress(record)

    return show
