"""The door itself: help, misspelled words, and how errors leave it."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hanse
from core.errors import WorkerError
from hanse.cli import main
from hanse.commands import runs

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("train", "evaluate", "predict", "generate", "demo", "doctor", "federate", "runs", "config")


def test_the_help_names_every_verb_and_fits_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = lines[lines.index("Commands:") + 1 :]
    assert [line.split()[0] for line in commands] == list(VERBS)
    assert all(len(line) <= 80 and not line.endswith("...") for line in commands)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"Usage: hanse {verb}" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hanse {hanse.__version__}\n"


def test_hanse_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        (["trian"], "hanse: trian: no such command; did you mean 'train'?"),
        (["runs", "lst"], "hanse: runs lst: no such command; did you mean 'list'?"),
        (["xyzzy"], "hanse: xyzzy: no such command; choose one of train, evaluate, predict"),
        (["train"], "hanse: Missing argument 'FILE'"),
        (["train", "x.yaml", "--dryrun"], "hanse: No such option '--dryrun'. Did you mean '--dry-run'?"),
    ],
)
def test_a_misspelled_word_is_one_line_with_a_hint(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(said) and captured.err.count("\n") == 1 and captured.out == ""


def test_with_json_the_last_line_of_a_failed_command_is_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "show", "nothing", "--json"]) == 3
    captured = capsys.readouterr()
    last = json.loads(captured.out.splitlines()[-1])
    assert last["event"] == "error" and last["exit_code"] == 3 and "no such run" in last["message"]
    assert captured.err.startswith("hanse: nothing: no such run")


@pytest.mark.parametrize(
    "error, exit_code, said",
    [
        (WorkerError("worker 1 failed"), 5, "hanse: worker 1 failed"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 4, "hanse: runs/x: No space left on device; free"),
        (KeyboardInterrupt(), 130, "hanse: interrupted"),
        (ZeroDivisionError("division by zero"), 1, "this is a defect in Hanse"),
        (OSError(errno.EBADF, "Bad file descriptor"), 1, "this is a defect in Hanse"),
    ],
)
def test_each_kind_of_error_has_its_exit_code(
    error: BaseException, exit_code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(console: object) -> int:
        raise error

    monkeypatch.setattr(runs, "table", fail)
    assert main(["runs", "list"]) == exit_code
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == ""
    assert ("Traceback" in captured.err) == (exit_code == 1)


def test_the_package_and_its_lists_import_no_torch() -> None:
    code = "import sys, hanse, hanse.commands.runs\nprint(*sorted(sys.modules.keys() & {'torch', 'yaml'}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


@pytest.mark.parametrize("words", [[], ["repeat.seeds=2"]])
def test_training_here_imports_nothing_that_it_does_not_need(words: list[str], tmp_path: Path) -> None:
    """Ray, pandas and the like cost seconds; the first number on the screen must come before that."""
    code = """
import sys
from hanse.cli import main
assert main(sys.argv[1:]) == 0
unwanted = 'ray flwr opacus sklearn pandas pyarrow scipy tokenizers PIL rich torch._dynamo'.split()
print(*sorted(sys.modules.keys() & unwanted))
"""
    words = ["train", "configs/train/digits.yaml", "train.steps=20", "--quiet", *words]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, f"run_dir={tmp_path / 'run'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""


def test_a_name_that_the_package_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="it has Trained, evaluate"):
        hanse.nothing  # noqa: B018
    assert "train" in dir(hanse)
