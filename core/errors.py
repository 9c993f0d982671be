"""The errors a user can mend: one line that says what, where and how to fix it.

Each class carries the exit code that the `hanse` command ends with.
"""


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
