"""The guides to federations: their commands run in the order in which they stand, and their tables are whole."""

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from core.config import read, read_text
from federated.attacks import AttackConfig
from federated.clock.devices import Devices
from federated.partition import PartitionConfig
from federated.run import Evaluation, FederateRun
from federated.strategies import StrategyConfig
from federated.transforms import TransformConfig
from hanse.cli import main
from tests.smoke.test_readme import blocks, commands

ROOT = Path(__file__).resolve().parents[2]
GUIDE, FLOWER = ROOT / "docs/federated.md", ROOT / "docs/flower.md"
ELSEWHERE = {  # commands that start processes, and what tests them
    "engine=pool": "tests/hanse/test_cli_federate.py",
    "engine=flower": "tests/federated/test_engine_flower.py",
}
UNIONS = (PartitionConfig, StrategyConfig, TransformConfig, AttackConfig)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a fresh clone, in which the commands are typed."""
    for name in ("configs", "bench"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HANSE_RUNS", "runs")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def arguments(line: str) -> list[str]:
    """The words of a hanse command, made short: few rounds."""
    words = shlex.split(line)[1:]
    is_run = words[:2] == ["federate", "simulate"] and "--app" not in words
    return [*words, "rounds=3"] if is_run and "rounds=" not in line else words


@pytest.mark.slow
@pytest.mark.parametrize("page", [GUIDE, FLOWER], ids=lambda page: page.name)
def test_every_command_and_example_of_a_guide_runs(page: Path, clone: Path) -> None:
    found = blocks(page.read_text())
    assert {"bash", "python"} <= {language for language, _ in found}
    for language, content in found:
        if language == "python" and not content.startswith("# federated/"):
            subprocess.run([sys.executable, "-c", content], cwd=clone, check=True, timeout=120)
        if language == "bash":
            for line in commands(f"```bash\n{content}```\n"):
                if not any(word in line for word in ELSEWHERE):
                    assert main(arguments(line)) == 0, line


def test_the_config_that_the_guide_shows_is_the_one_that_comes_with_hanse() -> None:
    (shown,) = (content for language, content in blocks(GUIDE.read_text()) if language == "yaml")
    assert read_text(shown, "shown") == read(ROOT / shown.splitlines()[0].removeprefix("# "))


def test_the_guide_names_every_kind_and_every_key() -> None:
    text = GUIDE.read_text()
    named = {word for quoted in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"\w+", quoted)}
    kinds = [kind for union in UNIONS for kind in typing.get_args(union)]
    rows = {word for row in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE) for word in re.findall(r"\w+", row)}
    assert {kind().kind for kind in kinds} - rows == set()
    keys = {key.name for cls in (*kinds, Devices, Evaluation, FederateRun) for key in dataclasses.fields(cls)}
    assert keys - named - {"kind", "recipe", "every"} == set()


@pytest.mark.slow
def test_the_strategy_of_the_guide_takes_one_file_and_one_line(tmp_path: Path) -> None:
    (code,) = (content for _, content in blocks(GUIDE.read_text()) if content.startswith("# federated/"))
    for room in ("core", "federated", "hanse", "cluster"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code)
    registry = tmp_path / "federated/strategies/__init__.py"
    line = "from federated.strategies.fading import Fading; StrategyConfig |= Fading\n"
    registry.write_text(registry.read_text().replace("\n__all__", f"\n{line}\n__all__"))
    script = f"""
import hanse

def weights(run, **changes):
    words = {{"strategy.kind": "fading", "clients": 4, "cohort": 2, "evaluate.every": 0, "run_dir": run, **changes}}
    return hanse.simulate({str(ROOT / "configs/federate/digits.yaml")!r}, words).summary["weights_sha256"]

first = weights("twice", rounds=1)
assert weights("twice", rounds=2, resume=True) == weights("once", rounds=2) != first
assert weights("other", rounds=2, **{{"strategy.power": 2.0}}) != weights("once", rounds=2, resume=True)
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)


def test_what_tests_the_other_commands_is_there() -> None:
    for word, file in ELSEWHERE.items():
        assert word in (ROOT / file).read_text()
