"""Files that are either whole or absent, whatever kills the process or the machine while they are written.

Everything goes to a hidden sibling first, is forced to the disk, and only then gets its name by one rename. Standard
library only, because commands that must answer at once (`hanse runs list`) stand on it.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

CHUNK = 4 << 20  # bytes hashed and written at a time; both calls release the GIL
TEMPORARY = ".tmp-"  # what a killed writer leaves behind starts with this


class Written(NamedTuple):
    """What a file must look like to be the one that was written."""

    size: int
    sha256: str


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> Written:
    """Writes a new file from parts, forces it to the disk, and returns its size in bytes and SHA-256."""
    size, digest = 0, hashlib.sha256()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for part in parts:
            view = memoryview(part).cast("B")
            for start in range(0, len(view), CHUNK):
                chunk = view[start : start + CHUNK]
                digest.update(chunk)
                write_all(fd, chunk)
            size += len(view)
        os.fsync(fd)
    finally:
        os.close(fd)
    return Written(size, digest.hexdigest())


def write_all(fd: int, data: memoryview) -> None:
    """Writes every byte; `os.write` may take fewer than it is given, for one when the disk is almost full."""
    while data:
        data = data[os.write(fd, data) :]


def fingerprint(path: Path) -> Written:
    """Size and SHA-256 of a file as it lies on the disk."""
    size, digest, buffer = 0, hashlib.sha256(), bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            size += count
    return Written(size, digest.hexdigest())


def sync_directory(path: Path) -> None:
    """Forces a directory's entries (new, renamed, removed names) to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # some network file systems cannot sync a directory, and keep its entries on the server anyway
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def replace_text(path: Path, text: str) -> None:
    """Gives a small text file new content; readers see the old or the new one, never a part. One writer at a time."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    temporary.unlink(missing_ok=True)
    try:
        write_file(temporary, [text.encode()])
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Removes a directory, or a file in its place. Its name goes first: no half-removed directory is seen under it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    hidden = path if path.name.startswith(TEMPORARY) else path.with_name(f"{TEMPORARY}removed-{path.name}")
    if hidden != path:
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(path, hidden)
    shutil.rmtree(hidden)
