"""A path as a user writes it, checked before anything is looked for or made there. Standard library only."""

import os
from pathlib import Path

from core.errors import ConfigError

LONGEST_NAME, LONGEST = 255, 4095  # bytes of a file's name and of a path, on every file system of Linux and macOS


def user_path(text: str | Path, key: str) -> Path:
    """The path, with `~` and `~user` for home directories. ConfigError, naming the key, if no file can lie there."""
    if "\0" in str(text):
        raise ConfigError(f"{key}: {str(text)!r} holds a NUL byte; no path does")
    path = Path(os.path.expanduser(text))
    try:
        names = [os.fsencode(part) for part in path.parts]
    except UnicodeEncodeError:
        raise ConfigError(f"{key}: {str(text)!r} holds a character that no path can hold") from None
    if max(map(len, names), default=0) > LONGEST_NAME or len(os.fsencode(path)) > LONGEST:
        raise ConfigError(
            f"{key}: {str(text)[:40]!r}... is too long; a name has at most {LONGEST_NAME} bytes, a path {LONGEST}"
        )
    first = Path(text).parts[0] if names else ""
    if first.startswith("~") and len(first) > 1 and not os.path.lexists(os.path.expanduser(first)):
        raise ConfigError(
            f"{key}: {str(text)!r}: no user '{first[1:]}' has a home directory here; write the path in full, "
            f"or ./{text} for a folder of that name"
        )
    return path
