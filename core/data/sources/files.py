"""Finding, reading and fingerprinting the user's files, with errors that name the file."""

import difflib
import hashlib
import stat
from collections.abc import Iterable
from pathlib import Path

from core.errors import DataError, blamed
from core.storage.atomic import fingerprint
from core.storage.path import user_path

BUNDLED = "bundled:"


def find(path: str) -> Path:
    """The file or folder at `path`. Raises DataError for a pipe or device, and with the nearest name for nothing."""
    found = user_path(path, "data.path")
    with blamed(DataError, path):
        if found.exists():
            mode = found.stat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                return found
            raise DataError(
                f"{path}: is neither a file nor a folder; data is read more than once, so save it in a file"
            )
        names = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
    near = difflib.get_close_matches(found.name, names, n=1)
    hint = f"did you mean {found.parent / near[0]}?" if near else "check data.path"
    raise DataError(f"{path}: no such file or folder; {hint}")


def nearest(word: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?", or the list of what there is."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"there are {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"


def bundled_name(path: str, known: Iterable[str]) -> str | None:
    """NAME of `bundled:NAME`, None for any other path. Raises DataError for a name that is not in `known`."""
    if not path.startswith(BUNDLED):
        return None
    names, name = list(known), path.removeprefix(BUNDLED)
    if name not in names:
        raise DataError(f"{path}: no such bundled data; {nearest(name, names)}")
    return name


def unknown_extension(path: Path, known: Iterable[str]) -> DataError:
    """The error for a file of a format that is not read here."""
    what = f"the extension '{path.suffix}'" if path.suffix else "a name without extension"
    return DataError(f"{path}: {what} is not read as this kind of data; use {', '.join(known)}")


def sha256_of(content: bytes) -> str:
    """The fingerprint of data that is already in memory."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """The fingerprint of one file."""
    with blamed(DataError, str(path)):
        return fingerprint(path).sha256


def sha256_named(parts: Iterable[tuple[str, str]]) -> str:
    """The fingerprint of several: of their names (relative, with /) and their own fingerprints, in the given order."""
    # a name that is not UTF-8 counts with its bytes
    return sha256_of("".join(f"{digest}  {name}\n" for name, digest in parts).encode(errors="surrogateescape"))


def relative_name(path: Path, root: Path) -> str:
    """A file's name below `root`, the same on every system."""
    return path.relative_to(root).as_posix()
