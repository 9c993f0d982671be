"""How large files, folders, functions and signatures are: targets, which are reported, and limits, which fail."""

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.architecture.sources import PACKAGES, Source, sources

# (target, limit)
FILE_LINES = (300, 500)
FUNCTION_LINES = (40, 80)
PARAMETERS = (5, 8)
FOLDER_FILES = (16, 24)


class Size(NamedTuple):
    """One measured thing: where, what, how much, and the two numbers it is held against."""

    where: str
    what: str
    size: int
    target: int
    limit: int

    def __str__(self) -> str:
        return f"{self.where}: {self.size} {self.what} (target {self.target}, limit {self.limit})"


def measure(files: Iterable[Source]) -> Iterator[Size]:
    files = tuple(files)
    for folder, count in Counter(source.path.rpartition("/")[0] for source in files).items():
        yield Size(folder, "files", count, *FOLDER_FILES)
    for source in files:
        yield Size(source.path, "lines", len(source.lines), *FILE_LINES)
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                where = f"{source.at(node)} {node.name}"
                yield Size(where, "lines", function_lines(node), *FUNCTION_LINES)
                yield Size(where, "parameters", parameters(node), *PARAMETERS)


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body, without the docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """What a caller can pass; `self` and `cls` do not count."""
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([argument for argument in named if argument.arg not in {"self", "cls"}])


def outliers() -> list[Size]:
    """What is past its target, worst first."""
    found = [size for size in measure(sources(*PACKAGES)) if size.size > size.target]
    return sorted(found, key=lambda size: -size.size / size.target)
