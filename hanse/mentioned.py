"""What a module of an app will import sooner or later, read from its text: also what it imports when it is called."""

import ast
from collections.abc import Iterator
from pathlib import Path


def mentioned(folder: Path, module: str) -> list[str]:
    """The modules that `module` and all modules of `folder` behind it import, and that lie elsewhere, in the order in
    which they are met. Files that cannot be read or parsed are passed over: whoever imports them says what is wrong."""
    found, seen, waiting = dict[str, None](), set[Path](), [module]
    while waiting:
        name = waiting.pop(0)
        file = _file(folder, name)
        if file is None:
            found[name] = None
        elif file not in seen:
            seen.add(file)
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            waiting += _imports(folder, file, package)
    return list(found)


def _file(folder: Path, name: str) -> Path | None:
    place = folder.joinpath(*name.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _imports(folder: Path, file: Path, package: str) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield origin
            yield from (name for alias in node.names if _file(folder, name := f"{origin}.{alias.name}"))
