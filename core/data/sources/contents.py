"""What a file holds: its bytes, unpacked where its name says that it is packed, or its text, which is UTF-8."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, TextIO, cast

from core.data.sources.walk import is_system
from core.errors import DataError, ResourceError, blamed

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
MOST_TIMES, MOST_BYTES = 100, 64 << 20  # what unpacks to more than so many times its size, and bytes, is no data
DAMAGED = "it may be truncated or damaged; fetch it again"


def kind_of(path: Path) -> str:
    """The ending that says what is in a file: `.csv` of x.CSV, of x.csv.gz, and of a zip with only a csv in it.

    Raises DataError for a zip that does not hold one file.
    """
    ending = path.suffix.lower()
    if ending == ".zip" and path.is_file():
        return Path(_only_name(path)).suffix.lower()
    return Path(path.stem).suffix.lower() if ending in PACKED else ending


def is_packed(path: Path) -> bool:
    """Whether its name says so."""
    return path.suffix.lower() in PACKED


@contextmanager
def byte_file(path: Path) -> Iterator[BinaryIO]:
    """The content, to be read once from its beginning. What goes wrong while it is read is a DataError."""
    with blamed(DataError, str(path), advice=DAMAGED if is_packed(path) else ""), path.open("rb") as file:
        _refuse_more_than_memory(path, os.fstat(file.fileno()).st_size)
        if not is_packed(path):
            yield file
            return
        with _unpacked(path, file) as inner, io.BufferedReader(_Bounded(inner, path, file)) as unpacked:
            yield unpacked


def refuse_bomb(path: Path, size: int, packed: int) -> None:
    """DataError if the content takes so many bytes more than it is packed into that it is no data."""
    if size > max(MOST_BYTES, MOST_TIMES * packed):
        raise DataError(
            f"{path}: unpacks to more than {MOST_TIMES} times its size, a sign of damage; save good data unpacked"
        )


def _refuse_more_than_memory(path: Path, size: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ResourceError(
            f"{path}: the file holds {size:,} bytes, this machine's memory {memory:,}; split it, or give less of it"
        )


@contextmanager
def text_file(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """The text, to be read once. DataError: it cannot be read, or a line, which is named, is not UTF-8."""
    try:
        with byte_file(path) as file:
            yield io.TextIOWrapper(file, "utf-8-sig", newline=newline)
    except DataError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise not_utf8(path) from None
        raise


def not_utf8(path: Path) -> DataError:
    """The error for a text in another encoding: it names the first such line, and what the text may be in."""
    with byte_file(path) as file:
        for number, line in enumerate(file, 1):
            at = _bad_byte(line)
            if at is not None:
                code = "utf-16" if number == 1 and line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "cp1252"
                what = f"line {number}: the byte 0x{line[at]:02x} is not UTF-8; the text may be {code}"
                return DataError(f"{path}: {what}; convert it: iconv -f {code} -t utf-8 {path.name} > NEW")
    return DataError(f"{path}: the text is not UTF-8")


def _bad_byte(line: bytes) -> int | None:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


# --- packed files --------------------------------------------------------------------------------------------------


class _Bounded(io.RawIOBase):
    """Bytes as they come, until there are more than any data is packed into."""

    def __init__(self, inner: IO[bytes], path: Path, packed: BinaryIO) -> None:
        self.inner, self.path, self.packed, self.count = inner, path, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview[int]") -> int:  # type: ignore[override]
        found = self.inner.read(len(buffer))
        self.count += len(found)
        refuse_bomb(self.path, self.count, self.packed.tell())  # of what is read so far, not of a large file
        buffer[: len(found)] = found
        return len(found)


def _unpacked(path: Path, file: BinaryIO) -> IO[bytes]:
    openers: dict[str, Callable[[], object]] = {
        ".gz": partial(gzip.open, file),
        ".bz2": partial(bz2.open, file),
        ".xz": partial(lzma.open, file),
        ".zst": partial(_zstd, file),
        ".zip": partial(_only_file, path, file),
    }
    return cast(IO[bytes], openers[path.suffix.lower()]())


def _only_file(path: Path, file: BinaryIO) -> object:
    return zipfile.ZipFile(file).open(_only_name(path))


def _zstd(file: BinaryIO) -> object:
    import pyarrow

    return pyarrow.input_stream(pyarrow.PythonFile(file, "r"), compression="zstd")


def _only_name(path: Path) -> str:
    with blamed(DataError, str(path), advice=DAMAGED), zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and not _is_aside(name)]
    if len(names) != 1:
        raise DataError(f"{path}: holds {len(names)} files; unpack it, and name the one to read")
    return names[0]


def _is_aside(name: str) -> bool:
    return any(is_system(Path(part)) for part in Path(name).parts)
