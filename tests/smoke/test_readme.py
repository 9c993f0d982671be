"""Every command of the README runs, in the order in which a reader meets them, in a folder like a fresh clone."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from core.config import read
from hanse.cli import main

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(bash|console|python|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Lines that are not run here, by how they begin, and the test (or the fact) that covers each.
ELSEWHERE = {
    "make demo": "tests/smoke/test_demo.py::test_the_demo_reaches_98_percent_and_the_same_weights_from_two_workers",
    "hanse demo": "tests/smoke/test_demo.py::test_the_demo_reaches_98_percent_and_the_same_weights_from_two_workers",
    "make setup": "tests/deploy/test_bootstrap.py",
    "make test": "this suite",
    "make check": "tests/architecture",
    "make help": "tests/deploy/test_bootstrap.py",
    "git clone": "needs a network",
    "cd ": "the folder of the clone, where these commands run",
    "source .venv/bin/activate": "the environment of this process",
    ". .venv/bin/activate": "the environment of this process",
    "ray start": "tests/cluster/test_data_parallel.py",
    "ray stop": "tests/cluster/test_data_parallel.py",
}
STEPS, QUICK = "train.steps=", 25  # at most
ROUNDS = 3
# What a reader would have: a table, a text, rows to predict
ROWS = [f"{20 + i % 40},{i % 9},{'low' if i % 40 < 20 else 'high'}" for i in range(120)]
TABLE = "\n".join(["age,hours,label", *ROWS]) + "\n"
FILES = {"mine.csv": TABLE, "new.csv": TABLE, "mine.txt": "It was the best of times. " * 800}


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks that are for typing."""
    return [(found[1], found[2]) for found in BLOCK.finditer(text)]


def commands(text: str) -> list[str]:
    """The lines to type: all of a bash block, those behind `$ ` of a console block. Comments are left out."""
    found = []
    for language, content in blocks(text):
        for line in content.replace("\\\n", " ").splitlines():
            if language == "console" and not line.startswith("$ "):
                continue
            line = re.sub(r"(^|\s)#.*", "", line.removeprefix("$ ")).strip()
            if line and language in ("bash", "console"):
                found.append(line)
    return found


def covering(line: str) -> str | None:
    """What covers a line that is not run here."""
    return next((test for start, test in ELSEWHERE.items() if line.startswith(start)), None)


def arguments(line: str, latest: str) -> list[str]:
    """The words of a hanse command, made short: few steps of training, and the name of a run where RUN stands."""
    words = [re.sub(r"\bRUN\b", latest, word) for word in shlex.split(line)[1:]]
    if words[0] == "train":
        given = [int(word.removeprefix(STEPS)) for word in words if word.startswith(STEPS)]
        words = [word for word in words if not word.startswith(STEPS)] + [f"{STEPS}{min([QUICK, *given])}"]
    if words[:2] == ["federate", "simulate"] and "--app" not in words:
        words.append(f"rounds={ROUNDS}")
    return words


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configs and a reader's own files; runs go to its `runs`."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HANSE_RUNS", "runs")
    return tmp_path


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_every_command_of_the_readme_runs(clone: Path) -> None:
    lines = commands(README.read_text())
    assert any(line.startswith("hanse train") for line in lines), "the README shows no training"
    for line in lines:
        if covering(line):
            continue
        assert line.startswith("hanse "), f"'{line}' is neither run here nor in the table of what covers it"
        link = clone / "runs" / "latest"
        assert main(arguments(line, os.readlink(link) if link.is_symlink() else "latest")) == 0, line


@pytest.mark.slow
def test_every_python_example_of_readme_and_guide_runs(clone: Path) -> None:
    texts = [README.read_text(), (ROOT / "docs" / "populations.md").read_text()]
    examples = [content for text in texts for language, content in blocks(text) if language == "python"]
    assert len(examples) >= 3, "README and guide show no Python"
    for example in examples:
        subprocess.run([sys.executable, "-c", example], cwd=clone, check=True, timeout=120)


def test_a_config_that_the_readme_shows_is_the_one_that_comes_with_hanse(tmp_path: Path) -> None:
    shown = [content for language, content in blocks(README.read_text()) if language == "yaml"]
    assert shown, "the README shows no config"
    for content in shown:
        (tmp_path / "shown.yaml").write_text(content)
        assert read(tmp_path / "shown.yaml") == read(ROOT / content.splitlines()[0].removeprefix("# "))


def test_what_covers_a_line_elsewhere_is_there() -> None:
    for test in ELSEWHERE.values():
        if test.startswith("tests/"):
            file, _, name = test.partition("::")
            assert (ROOT / file).exists(), test
            assert not name or f"def {name}(" in (ROOT / file).read_text(), test


def test_the_lines_to_type_are_found() -> None:
    text = """\
```bash
hanse train a.yaml \\
  workers=2      # on Ray
# only words
make demo
```
```console
$ hanse runs list
run   status
```
```yaml
hanse: no
```
"""
    assert commands(text) == ["hanse train a.yaml    workers=2", "make demo", "hanse runs list"]
    assert arguments("hanse train a.yaml resume=RUN", "x-1") == ["train", "a.yaml", "resume=x-1", "train.steps=25"]
    assert covering("make demo") is not None and covering("hanse train x") is None
