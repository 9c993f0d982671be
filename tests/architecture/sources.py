"""The project's own source files, parsed once, and what the tests ask about them."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "cluster", "federated", "hanse")


@dataclass(frozen=True)
class Source:
    """One file: its path from the root with slashes, its lines and its syntax tree."""

    path: str
    lines: tuple[str, ...]
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    def at(self, node: ast.AST) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 0)}"


def parse(path: str, text: str) -> Source:
    return Source(path, tuple(text.splitlines()), ast.parse(text, path))


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """All Python files under these folders of the project, by path."""
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return tuple(parse(file.relative_to(ROOT).as_posix(), file.read_text()) for file in files)


def imports(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every imported module under a node, wherever it stands, also through `import_module("name")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node, node.module
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
            yield from ((node, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def called(node: ast.Call) -> str:
    """The last name of what a call calls: `load` of `torch.load(...)`."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))
