"""The errors a user can mend: one line that says what, where and how to fix it.

Each class carries the exit code that the `hanse` command ends with. `blamed` and `out_of_memory` turn what a library or
the system raises into one of them: no other place does.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class HanseError(ValueError):
    """A mistake that the user can mend. The message is one line; `exit_code` is the process's status."""

    exit_code = 1


class ConfigError(HanseError):
    """A wrong key, type, value or combination in a config."""

    exit_code = 2


class DataError(HanseError):
    """A missing, unreadable or malformed data file, checkpoint or model directory."""

    exit_code = 3


class ResourceError(HanseError):
    """Something that the machine or the cluster does not have: memory, disk, workers, a lock, an address."""

    exit_code = 4


class WorkerError(HanseError):
    """Training itself failed: a worker died for good, or the loss became NaN."""

    exit_code = 5


class LostError(WorkerError):
    """What did the work is gone, for no fault of the run's own: it can go on from its last checkpoint."""

    run: Path | None = None  # the directory of the run, once it is known


# What the system says when the machine cannot, and what a user can do about it.
MACHINE = {
    errno.ENOSPC: "free some space, or set HANSE_RUNS to another disk",
    errno.EDQUOT: "free some space, or set HANSE_RUNS to another disk",
    errno.EFBIG: "a limit on file sizes is set for this process or file system; see `ulimit -f`",
    errno.EROFS: "set HANSE_RUNS or run_dir to a place that can be written",
    errno.EACCES: "set HANSE_RUNS or run_dir to a place that you may write",
    errno.ENOMEM: "use a smaller train.batch_size, or a larger train.accumulate",
    errno.EMFILE: "raise the limit on open files; see `ulimit -n`",
}
# While something is read, these are the machine's fault; all other errors of the system are that file's.
_READING = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO}
# Refused memory, and sizes that no memory has, in the words of torch, CUDA, C++, numpy and Python.
_MEMORY = re.compile(
    r"not enough memory|out of memory|can't allocate|cannot allocate|unable to allocate|bad_?alloc|"
    r"storage size calculation overflowed|overflow when unpacking|multiplication overflow|array is too big|"
    r"maximum allowed dimension|cannot fit 'int'|int too (?:large|big)|result too many items",
    re.IGNORECASE,
)
_LONGEST = 300  # characters of a library's own words in a message


def is_memory(error: BaseException) -> bool:
    """Whether a library says that memory does not suffice, or that no memory has such a size."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, HanseError) or not isinstance(error, RuntimeError | ValueError | TypeError | OverflowError):
        return False
    return type(error).__name__ == "OutOfMemoryError" or _MEMORY.search(str(error)) is not None


def words_of(error: BaseException) -> str:
    """What a library's error says, in one line of a bounded length."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    said = f"{said} is missing" if isinstance(error, KeyError) else said
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."


@contextmanager
def out_of_memory(
    where: str = "memory", advice: str = "lower train.batch_size, raise train.accumulate, or use workers"
) -> Iterator[None]:
    """Turns refused memory, in anybody's words, into a ResourceError that names the key `where`."""
    try:
        yield
    except Exception as error:
        if not is_memory(error):
            raise
        raise ResourceError(f"{where}: more memory is needed than there is: {words_of(error)}; {advice}") from error


@contextmanager
def blamed(kind: type[HanseError], where: str, what: str = "cannot be read", advice: str = "") -> Iterator[None]:
    """Turns whatever a library raises about a file or a text into an error of this kind: `where: what: its words`.

    Around the library's calls only, so that our own mistakes stay tracebacks. Our errors pass; refused memory, too many
    open files and a broken disk are a ResourceError.
    """
    cure = f"; {advice}" if advice else ""
    try:
        yield
    except HanseError as error:
        if not isinstance(error, ConfigError) or kind is ConfigError:
            raise
        raise kind(f"{where}: {what}: {error}") from error  # the config of a file is not the user's to mend
    except Exception as error:
        if is_memory(error):
            kind, cure = ResourceError, "; it takes more memory than there is"
        elif isinstance(error, OSError) and error.errno in _READING:
            kind, cure = ResourceError, f"; {MACHINE.get(error.errno or 0, 'see what the system log says')}"
        raise kind(f"{where}: {what}: {words_of(error)}{cure}") from error
