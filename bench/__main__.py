"""`python -m bench [NAME ...]`: runs the named measures, or all of them."""

import importlib
import os
import pathlib
import sys


def main() -> int:
    """Each measure is a module with `run()`; its first docstring line says what it measures."""
    folder = pathlib.Path(__file__).parent
    known = sorted(p.stem for p in folder.glob("*.py") if p.stem not in ("__init__", "__main__", "measure"))
    names = sys.argv[1:] or known
    if unknown := [name for name in names if name not in known]:
        print(f"bench: no measure called {unknown[0]}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # programs keep what they compile, as installed ones do
    for name in names:
        importlib.import_module(f"bench.{name}").run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
