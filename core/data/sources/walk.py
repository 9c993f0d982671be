"""The files of a folder: links are followed, what systems and programs leave behind is passed over, and what is left
out is counted, so that it can be said."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import DataError, blamed

# Of macOS, Windows and network drives; names that begin with a dot are passed over as well.
SYSTEM = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"}
SHOWN = 6  # folders, and endings, that a line names


@dataclass
class LeftOut:
    """What is not read below a folder: folders by name with the files in them, and files by their ending."""

    folders: Counter[str] = field(default_factory=Counter)
    inside: int = 0
    endings: Counter[str] = field(default_factory=Counter)

    def folder(self, path: Path, files: int | None = None) -> None:
        """A whole folder, with as many files as are given, or counted."""
        self.folders[path.name] += 1
        self.inside += sum(1 for _ in _below(path)) if files is None else files

    def file(self, path: Path) -> None:
        """One file."""
        self.endings[path.suffix.lower() or path.name] += 1

    def note(self, root: Path | str) -> tuple[str, ...]:
        """`pets: left out 1 folder with 2 files (.cache) and 3 files (2 .txt, 1 .db)`; nothing if all was read."""
        parts = []
        if self.folders:
            what = f"{_count(self.folders.total(), 'folder')} with {_count(self.inside, 'file')}"
            parts.append(f"{what} ({_listed(list(self.folders))})")
        if self.endings:
            named = [f"{number:,} {ending}" for ending, number in self.endings.most_common()]
            parts.append(f"{_count(self.endings.total(), 'file')} ({_listed(named)})")
        return (f"{root}: left out {' and '.join(parts)}",) if parts else ()


def walk(root: Path, endings: Sequence[str], left: LeftOut) -> list[Path]:
    """The files below `root` with one of `endings`, in any case, in order of path; the others are told to `left`.

    Raises DataError if a folder cannot be read.
    """
    found = []
    for path in _below(root, left):
        if path.name.lower().endswith(tuple(endings)) and path.is_file() and not is_system(path):
            found.append(path)
        else:
            left.file(path)
    return sorted(found)


def is_system(path: Path) -> bool:
    """Whether a system or a program has put it there, for itself."""
    return path.name.startswith(".") or path.name.lower() in SYSTEM


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, in order of name. Raises DataError if it cannot be read."""
    with blamed(DataError, str(folder)):
        return sorted(folder.iterdir())


def _below(root: Path, left: LeftOut | None = None) -> Iterator[Path]:
    """All that is no folder; with `left` without the folders of systems, which are told to it."""
    stack: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset([_identity(root)]))]
    while stack:
        folder, above = stack.pop()
        inside = entries(folder)
        for path in inside:
            if not path.is_dir():
                yield path
            elif left is not None and is_system(path):
                left.folder(path)
            elif (identity := _identity(path)) not in above:
                stack.append((path, above | {identity}))
            elif left is not None:  # a link to a folder above it would never end
                left.folder(path, 0)
        if left is not None and not inside and folder != root:
            left.folder(folder, 0)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _listed(named: list[str]) -> str:
    return ", ".join([*named[:SHOWN], *(["..."] if len(named) > SHOWN else [])])
