"""A value that the processes of a pool read from one file in memory."""

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from core.pool.protocol import not_ours, released
from core.pool.wire import published

if TYPE_CHECKING:
    from core.pool.processes import ProcessPool

T = TypeVar("T")
_read: dict[str, Any] = {}  # what this process has read, by file


class ProcessShared(Generic[T]):
    """A handle of a shared value. It travels as the name of its file."""

    def __init__(self, file: str, pool: "ProcessPool | None" = None) -> None:
        self._file, self._pool = file, pool

    def get(self) -> T:
        """The value; its tensors and arrays lie in memory that others read too. ConfigError if it was released."""
        if self._file not in _read:
            try:
                _read[self._file] = published(self._file)
            except FileNotFoundError:
                raise released() from None
        value: T = _read[self._file]
        return value

    def release(self) -> None:
        """Frees the value. Raises ConfigError in a worker: only the process that shared it knows who needs it."""
        if self._pool is None:
            raise not_ours()
        self._pool.release(self._file)

    def __reduce__(self) -> tuple[Any, ...]:
        return ProcessShared, (self._file,)


def forget(file: str) -> None:
    """Lets go of a value in this process."""
    _read.pop(file, None)
