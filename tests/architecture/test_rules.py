"""Rules that hold the roof up and that a linter does not know: one backward, no unpickling, no swallowed errors."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.architecture.sources import PACKAGES, Source, called, calls, imports, parse, sources

UNPICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
PRIVATE = "core/pool/wire.py"  # what a pool and the processes that it started itself tell each other
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|home|root|tmp|Users)/")


def backward_calls(source: Source) -> list[str]:
    return [source.path for call in calls(source.tree) if called(call) == "backward"]


def code_from_data(source: Source) -> Iterator[str]:
    """Ways in which reading a file can run code: unpickling, eval, exec."""
    for node, name in imports(source.tree):
        if name.split(".")[0] in UNPICKLERS and source.path != PRIVATE:
            yield f"{source.at(node)} imports {name}"
    for call in calls(source.tree):
        name = ast.unparse(call.func)
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name in {"eval", "exec"}:
            yield f"{source.at(call)} calls {name}"
        if name == "torch.load" and given.get("weights_only") != "True":
            yield f"{source.at(call)} calls torch.load without weights_only=True"
        if given.get("allow_pickle", "False") != "False":
            yield f"{source.at(call)} allows pickle"


def swallowed_errors(source: Source) -> Iterator[str]:
    """`except:`, `except Exception:` and wider whose body does nothing."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            is_wide = node.type is None or "Exception" in ast.unparse(node.type)
            if is_wide and all(_does_nothing(step) for step in node.body):
                yield f"{source.at(node)} swallows every error"


def _does_nothing(step: ast.stmt) -> bool:
    is_constant = isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant)
    return is_constant or isinstance(step, ast.Pass | ast.Continue)


def machine_paths(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and MACHINE_PATH.search(node.value):
            yield f"{source.at(node)} names a path of one machine"


def test_the_only_backward_is_in_the_one_loop() -> None:
    found = [path for source in sources(*PACKAGES) for path in backward_calls(source)]
    assert found == ["core/train.py"]


@pytest.mark.parametrize("rule", [code_from_data, swallowed_errors, machine_paths], ids=lambda rule: rule.__name__)
def test_no_source_file_breaks_the_rule(rule: Callable[[Source], Iterator[str]]) -> None:
    assert [line for source in sources(*PACKAGES) for line in rule(source)] == []


@pytest.mark.parametrize(
    "rule, text",
    [
        (backward_calls, "loss.sum().backward()"),
        (code_from_data, "import pickle"),
        (code_from_data, "torch.load(path)"),
        (code_from_data, "torch.load(path, weights_only=False)"),
        (code_from_data, "np.load(path, allow_pickle=True)"),
        (code_from_data, "eval('1')"),
        (swallowed_errors, "try:\n    f()\nexcept Exception:\n    pass"),
        (swallowed_errors, "try:\n    f()\nexcept (OSError, BaseException):\n    ..."),
        (swallowed_errors, "for x in y:\n    try:\n        f()\n    except:\n        continue"),
        (machine_paths, "RUNS = '/home/me/runs'"),
        (machine_paths, "f'{x}:/tmp/{y}'"),
    ],
)
def test_each_rule_sees_what_it_forbids(rule: Callable[[Source], Iterator[str]], text: str) -> None:
    assert len(list(rule(parse("core/x.py", text)))) == 1


@pytest.mark.parametrize(
    "rule, text",
    [
        (code_from_data, "model.eval()\ntorch.load(path, weights_only=True)"),
        (swallowed_errors, "try:\n    f()\nexcept Exception as error:\n    log(error)"),
        (swallowed_errors, "try:\n    f()\nexcept FileNotFoundError:\n    pass"),
        (machine_paths, "url = 'https://example.org/home/x'"),
    ],
)
def test_each_rule_allows_what_is_fine(rule: Callable[[Source], Iterator[str]], text: str) -> None:
    assert list(rule(parse("core/x.py", text))) == []


def test_no_file_has_a_name_that_says_nothing() -> None:
    parts = {part: source.path for source in sources(*PACKAGES) for part in source.path.removesuffix(".py").split("/")}
    assert {part: path for part, path in parts.items() if part in VAGUE_NAMES} == {}


def test_every_module_says_what_it_is() -> None:
    assert [source.path for source in sources(*PACKAGES) if source.lines and not ast.get_docstring(source.tree)] == []


def test_every_test_name_is_a_sentence() -> None:
    functions = [
        (source.at(node), node.name)
        for source in sources("tests")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    assert len(functions) > 10
    assert [f"{at} {name}" for at, name in functions if len(name.split("_")) < 4] == []


def test_no_test_of_drawn_examples_has_a_deadline() -> None:
    import hypothesis

    assert hypothesis.settings().deadline is None
    own = [
        path
        for path in sorted(Path(__file__).parents[1].rglob("*.py"))
        if re.search(r"\bsettings\([^)]*deadline", path.read_text())
    ]
    assert not own, f"tests/conftest.py turns deadlines off for all: {own}"
