"""Doors open one way: who may import whom, and what is imported only where it is used."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import PACKAGES, ROOT, Source, imports, parse, sources

CLOSED = {
    "core": {"ray", "flwr", "cluster", "federated", "hanse", "typer", "rich"},
    "cluster": {"flwr", "federated", "hanse", "typer", "rich"},
    "federated": {"ray", "cluster", "hanse", "typer", "rich"},
    "hanse": set[str](),
}
ONLY_IN_CONFIG = {"yaml", "pydantic"}
HEAVY = {"tokenizers", "pandas", "pyarrow", "PIL", "sklearn", "scipy", "transformers", "opacus"}


def forbidden_imports(source: Source) -> list[str]:
    closed = set(CLOSED[source.package])
    if source.package == "core" and source.path != "core/config.py":
        closed |= ONLY_IN_CONFIG
    return [f"{source.at(node)} imports {name}" for node, name in imports(source.tree) if name.split(".")[0] in closed]


def eager_imports(source: Source) -> list[str]:
    """Heavy imports that run with the module: at its top level, also inside `try` or `if`, but not for types only."""
    found = []
    waiting: list[ast.AST] = list(source.tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [name for _, name in imports(node) if name.split(".")[0] in HEAVY]
            found += [f"{source.at(node)} imports {name} at the top" for name in names]
        waiting += ast.iter_child_nodes(node)
    return found


def run_python(code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120)


def test_no_package_imports_one_behind_a_closed_door() -> None:
    assert [line for source in sources(*PACKAGES) for line in forbidden_imports(source)] == []


@pytest.mark.parametrize(
    "path, text",
    [
        ("core/x.py", "import ray"),
        ("core/x.py", "def f():\n    from ray.util import queue"),
        ("core/x.py", "import importlib\nimportlib.import_module('flwr.app')"),
        ("core/x.py", "import yaml"),
        ("core/models/x.py", "from pydantic import BaseModel"),
        ("cluster/x.py", "import flwr"),
        ("cluster/x.py", "from hanse import console"),
        ("federated/x.py", "import ray"),
        ("federated/x.py", "from cluster.pool import RayPool"),
        ("cluster/x.py", "import rich.table"),
    ],
)
def test_the_import_rule_sees_a_closed_door(path: str, text: str) -> None:
    assert len(forbidden_imports(parse(path, text))) == 1


def test_core_imports_heavy_libraries_only_where_they_are_used() -> None:
    assert [line for source in sources("core") for line in eager_imports(source)] == []


def test_the_heavy_import_rule_sees_one_inside_try() -> None:
    text = "try:\n    import pandas\nexcept ImportError:\n    pandas = None\ndef f():\n    import sklearn"
    assert eager_imports(parse("core/x.py", text)) == ["core/x.py:2 imports pandas at the top"]


def test_every_core_module_imports_without_ray_flwr_and_opacus() -> None:
    code = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(("ray", "flwr", "opacus")))
import core
for module in pkgutil.walk_packages(core.__path__, "core."):
    importlib.import_module(module.name)
print(len(sys.modules))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_the_packages_that_python_finds_are_ours() -> None:
    for name in PACKAGES:
        if (ROOT / name).is_dir():
            done = run_python(f"import {name}; print({name}.__file__)")
            assert Path(done.stdout.strip()).is_relative_to(ROOT / name), done.stdout + done.stderr


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["runs", "list"]], ids=" ".join)
def test_quick_commands_start_without_the_heavy_libraries(words: list[str]) -> None:
    code = """
import sys
from hanse.cli import main
status = 0
try:
    status = main()
except SystemExit as stop:
    status = stop.code
heavy = ("torch", "numpy", "ray", "flwr", "opacus", "pandas", "sklearn", "tokenizers", "transformers", "PIL", "pyarrow")
print("loaded:", *[name for name in heavy if name in sys.modules])
sys.exit(status)
"""
    done = run_python(code, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"
