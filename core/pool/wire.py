"""How values get from one process of a pool to another on the same machine: small ones in the message itself, large
ones as a file in memory, and shared ones as a file that every process maps instead of copying it.

This is the one place where something is unpickled: between a pool and the processes that it started itself, over
sockets and a folder that no other user can open. Nothing that is kept or comes from elsewhere passes here.
"""

import contextlib
import errno
import fcntl
import io
import mmap
import os
import pickle
import shutil
import struct
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import IO, Any

import cloudpickle  # also sends what a notebook or a script defines

from core.pool.tensors import as_array, as_tensor

MEMORY = "/dev/shm"  # where files are memory, on Linux
PREFIX, LOCK, BEGUN = "hanse-pool-", "lock", "begun"
SMALL = 128 << 10  # bytes up to which a value travels in its message, which is faster than a file
ALIGN = 64  # bytes: a tensor or array begins where its numbers may lie
LENGTH = struct.Struct("<Q")
HERE, FILE = b"h", b"f"
_by_name: dict[int, Any] = {}  # classes and functions that travel as their names: cloudpickle takes long to find out


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Takes tensors as arrays, and arrays out of the stream."""

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType or issubclass(kind, type):
            if _by_name.get(id(obj)) is obj and _is_named(obj):
                return NotImplemented
            reduced = super().reducer_override(obj)
            if reduced is NotImplemented:
                _by_name[id(obj)] = obj
            return reduced
        torch = sys.modules.get("torch")
        if torch is not None and kind is torch.Tensor:
            return as_tensor, (as_array(obj),)
        return NotImplemented


def _is_named(obj: Any) -> bool:
    """Whether its name still leads to it: its module may have been loaded anew."""
    found: Any = sys.modules.get(obj.__module__)
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj


class Folder:
    """Where the large values of a pool lie: in memory, and on the disk what does not fit there."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self._locks: list[IO[bytes]] = []

    @classmethod
    def make(cls) -> "Folder":
        """A new one that only this user can open, and that is this process's for as long as it lives. Removes those of
        processes that were killed together with all that would have removed them."""
        roots = [root for root in (MEMORY,) if os.access(root, os.W_OK)] + [tempfile.gettempdir()]
        folder = cls([tempfile.mkdtemp(prefix=PREFIX, dir=root) for root in dict.fromkeys(roots)])
        for path in folder.paths:
            lock = open(f"{path}/{LOCK}.new", "wb")  # noqa: SIM115 - it is held until the process ends
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.rename(lock.name, f"{path}/{LOCK}")
            folder._locks.append(lock)
            _sweep(Path(path).parent)
        return folder

    def part(self, number: int) -> "Folder":
        """The part of it for what is on its way to and from a worker."""
        return Folder([f"{path}/{number}" for path in self.paths])

    def open(self) -> None:
        """Makes a part, which may be removed by itself."""
        for path in self.paths:
            os.mkdir(path)

    def counter(self) -> "Counter":
        """The counter of a part, the same for all who ask for it."""
        return Counter(f"{self.paths[0]}/{BEGUN}")

    def write(self, parts: Sequence[bytes | memoryview]) -> str:
        """A new file of these parts. OSError if there is room nowhere."""
        for path in self.paths:
            file = f"{path}/{uuid.uuid4().hex}"
            try:
                _write(file, parts)
            except OSError as error:
                Path(file).unlink(missing_ok=True)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or path == self.paths[-1]:
                    raise
            else:
                break
        return file

    def remove(self) -> None:
        """Removes all that is in it. What a process has mapped stays there for it."""
        for path in self.paths:
            shutil.rmtree(path, ignore_errors=True)
        while self._locks:
            self._locks.pop().close()


class Counter:
    """A number that one process counts up and another reads, also when the first is dead."""

    def __init__(self, file: str) -> None:
        with open(file, "a+b") as stream:
            stream.truncate(LENGTH.size)
            self._memory = mmap.mmap(stream.fileno(), LENGTH.size)

    @property
    def value(self) -> int:
        (value,) = LENGTH.unpack_from(self._memory)
        return int(value)

    def up(self) -> None:
        """One more."""
        LENGTH.pack_into(self._memory, 0, self.value + 1)

    def close(self) -> None:
        """Lets go of the memory."""
        self._memory.close()


def _sweep(root: Path) -> None:
    """Removes the folders whose owner is dead: nobody holds their lock."""
    for lock in root.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError), open(lock, "rb") as file:  # another user's, or gone, or held
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


def _write(file: str, parts: Sequence[bytes | memoryview]) -> None:
    with open(file, "xb", buffering=0) as stream:
        for part in parts:
            rest = memoryview(part).cast("B")
            while rest:
                rest = rest[stream.write(rest) :]


def seal(value: Any, folder: Folder | None) -> bytes:
    """A message with the value in it, or with the name of a file where it lies; without a folder all in the message.

    Raises what pickling raises, and OSError if the file cannot be written.
    """
    parts = _parts(value)
    if folder is not None and sum(map(len, parts)) > SMALL:
        return FILE + folder.write(parts).encode()
    return b"".join([HERE, *parts])


def opened(message: bytes) -> Any:
    """The value of a message. Its file is read and removed: a mapping would hold a file descriptor for each value."""
    if message[:1] == HERE:
        return _value(memoryview(bytearray(memoryview(message)[1:])))  # which begins at a multiple of 16
    file = message[1:].decode()
    with open(file, "rb", buffering=0) as stream:
        content = memoryview(bytearray(os.fstat(stream.fileno()).st_size))
        at = 0
        while at < len(content) and (read := stream.readinto(content[at:])):
            at += read
    os.unlink(file)
    return _value(content)


def publish(value: Any, folder: Folder) -> str:
    """A file with the value in it, that many may read. Raises what `seal` raises."""
    return folder.write(_parts(value))


def published(file: str) -> Any:
    """The value of such a file, which stays mapped for as long as it lives; its arrays are read-only. FileNotFoundError
    if the file is gone."""
    with open(file, "rb") as stream:  # private: what a process writes there by mistake, no other sees
        return _value(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)).toreadonly())


def require_sendable(value: Any) -> None:
    """Raises what `seal` would raise of the value itself. Its arrays are not copied if they lie in one piece."""
    Pickler(_Nowhere(), pickle.HIGHEST_PROTOCOL, buffer_callback=lambda buffer: None).dump(value)


def _parts(value: Any) -> list[bytes | memoryview]:
    """How many pieces there are, their sizes, and the pieces: the value without its arrays, and these. What fills it up
    lies between them, so that each begins at a multiple of `ALIGN`."""
    stream, buffers = io.BytesIO(), list[Any]()
    keep: Callable[[Any], None] = buffers.append
    Pickler(stream, pickle.HIGHEST_PROTOCOL, buffer_callback=keep).dump(value)
    pieces = [stream.getvalue(), *[buffer.raw() for buffer in buffers]]
    sizes = b"".join(map(LENGTH.pack, [len(pieces), *map(len, pieces)]))
    return [part for piece in (sizes, *pieces) for part in (piece, bytes(-len(piece) % ALIGN))]


def _value(content: memoryview) -> Any:
    """The value of what `_parts` gave."""
    (count,) = LENGTH.unpack_from(content)
    at, pieces = LENGTH.size * (1 + count), []
    for i in range(1, 1 + count):
        (size,) = LENGTH.unpack_from(content, LENGTH.size * i)
        at += -at % ALIGN
        pieces.append(content[at : at + size])
        at += size
    return pickle.loads(pieces[0], buffers=pieces[1:])


class _Nowhere(io.RawIOBase):
    def write(self, data: Any) -> int:
        return len(data)
