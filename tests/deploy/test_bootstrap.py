"""Set-up on machines of many kinds, played by a script that stands in for `.venv/bin/python` and notes its calls."""

import ast
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Answers what bootstrap asks of the environment's Python; ANSWER_* say how this machine differs from a good one.
STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in
    *"import pip, sys"*) echo ${ANSWER_PYTHON:-3 11} ;;
    *"import torch"*) grep -q "install .*torch" "$CALLS" && ANSWER_TORCH=2.13.0
        echo "$ANSWER_TORCH"; test -n "$ANSWER_TORCH" ;;
    *"pip index versions"*) echo "Available versions: ${ANSWER_VERSIONS:-2.14.0, 2.13.0+cpu, 2.13.0}" ;;
    *"pip install"*) test -z "$ANSWER_HANG" || { echo hangs > "$ANSWER_HANG"; sleep 60; }
        echo "  Downloading thing-1.0.whl (2.5 MB)"; echo "$ANSWER_PIP"; test -z "$ANSWER_PIP" ;;
    *"pip check"*) echo "$ANSWER_CHECK"; test -z "$ANSWER_CHECK" ;;
esac
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with a `.venv` whose Python is the stand-in; the calls go to `calls` in it."""
    root = tmp_path / "clone"
    (root / "deploy").mkdir(parents=True)
    for name in ("deploy/bootstrap.py", "pyproject.toml", "constraints.txt"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    python = root / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return root


def environment(clone: Path, **answers: str) -> dict[str, str]:
    free = {key: value for key, value in os.environ.items() if key not in {"HANSE_GPU", "TORCH_INDEX"}}
    return free | {"CALLS": str(clone / "calls"), "HANSE_GPU": "0"} | answers


@pytest.fixture
def run(clone: Path) -> Run:
    def bootstrap(**answers: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(clone / "deploy/bootstrap.py")]
        env = environment(clone, **answers)
        return subprocess.run(command, cwd=clone.parent, env=env, capture_output=True, text=True, timeout=60)

    return bootstrap


def installs(clone: Path) -> list[str]:
    """What pip was asked to install, in order, without the options that every call has."""
    lines = (clone / "calls").read_text().splitlines()
    asked = [line.removeprefix("-m pip install ") for line in lines if line.startswith("-m pip install")]
    return [line.split(" --progress-bar")[0] for line in asked]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_torch_is_installed_first_and_alone(clone: Path, run: Run) -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert installs(clone) == ["-c constraints.txt torch==2.13.0+cpu", "-c constraints.txt -e .[dev]"]
    assert "download about 200 MB" in done.stdout and "2 MB downloaded" in done.stdout


def test_the_packages_of_the_clone_are_compiled_last(clone: Path, run: Run) -> None:
    run(PYTHONDONTWRITEBYTECODE="1")
    assert (clone / "calls").read_text().splitlines()[-1] == "-m compileall -q core cluster federated hanse"


def test_a_second_run_calls_nothing(clone: Path, run: Run) -> None:
    run()
    before = (clone / "calls").read_text()
    assert run().stdout == "hanse: .venv is up to date\n"
    assert (clone / "calls").read_text() == before


def test_a_changed_constraint_sets_up_again(clone: Path, run: Run) -> None:
    run()
    with (clone / "constraints.txt").open("a") as file:
        file.write("six==1.17.0\n")
    assert "[3/3]" in run(ANSWER_TORCH="2.13.0").stdout


def test_an_importable_torch_of_the_right_minor_version_is_kept(clone: Path, run: Run) -> None:
    assert "torch 2.13.1+cu126 is here: kept" in run(ANSWER_TORCH="2.13.1+cu126").stdout
    assert installs(clone) == ["-c constraints.txt -e .[dev]"]


def test_another_minor_version_of_torch_is_replaced(clone: Path, run: Run) -> None:
    run(ANSWER_TORCH="2.12.1")
    assert installs(clone)[0] == "-c constraints.txt torch==2.13.0+cpu"


def test_with_a_gpu_the_build_with_cuda_is_taken_and_its_size_said(clone: Path, run: Run) -> None:
    done = run(HANSE_GPU="1")
    assert installs(clone)[0] == "-c constraints.txt torch==2.13.0"
    assert "download about 3 GB" in done.stdout


def test_without_a_cpu_build_the_user_learns_how_to_name_an_index(clone: Path, run: Run) -> None:
    done = run(ANSWER_VERSIONS="2.13.0, 2.12.0")
    assert installs(clone)[0] == "-c constraints.txt torch==2.13.0"
    assert "about 3 GB" in done.stdout and "TORCH_INDEX=URL make setup" in done.stdout


def test_a_named_index_serves_torch_and_nothing_else(clone: Path, run: Run) -> None:
    run(TORCH_INDEX="file:///wheels")
    assert installs(clone) == ["--index-url file:///wheels torch==2.13.0", "-c constraints.txt -e .[dev]"]


@pytest.mark.parametrize(
    "answers, said",
    [
        ({"ANSWER_PYTHON": "3 10"}, ".venv has Python 3.10; remove it"),
        ({"ANSWER_PIP": "ERROR: Could not find a version (from versions: none)"}, "no package source answered; check"),
        ({"ANSWER_PIP": "OSError: [Errno 28] No space left on device"}, "the disk is full; make room"),
        ({"ANSWER_PIP": "ERROR: something new"}, "ERROR: something new (all of pip's words: "),
        ({"ANSWER_CHECK": "flwr 1.41 has requirement rich<15"}, "packages disagree: flwr 1.41 has requirement rich<15"),
    ],
)
def test_what_goes_wrong_is_one_clear_line(run: Run, answers: dict[str, str], said: str) -> None:
    done = run(**answers)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("hanse: ") and said in done.stderr


def test_a_failed_set_up_is_not_taken_for_a_finished_one(run: Run) -> None:
    run(ANSWER_PIP="ERROR: something new")
    assert "[3/3]" in run().stdout


def test_a_change_that_failed_and_was_taken_back_sets_up_again(clone: Path, run: Run) -> None:
    run()
    before = (clone / "constraints.txt").read_text()
    (clone / "constraints.txt").write_text(before + "six==1.17.0\n")
    run(ANSWER_PIP="ERROR: something new")  # pip may have got halfway
    (clone / "constraints.txt").write_text(before)
    assert "[3/3]" in run().stdout


def test_ctrl_c_stops_pip_and_says_how_to_go_on(clone: Path, tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    os.mkfifo(sign)
    command = [sys.executable, str(clone / "deploy/bootstrap.py")]
    env = environment(clone, ANSWER_HANG=str(sign))
    child = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert sign.read_text() == "hangs\n"  # pip is at work
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert said.strip() == "hanse: stopped; `make setup` goes on from here"


def test_a_half_made_environment_is_made_again(clone: Path, tmp_path: Path, run: Run) -> None:
    (clone / ".venv/bin/python").write_text("#!/bin/sh\nexit 1\n")
    # the real environment is made; then its pip finds nothing, for the only source is an empty folder
    done = run(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path), PIP_CONFIG_FILE=os.devnull)
    assert "broken or half made" in done.stdout
    assert "no package source answered" in done.stderr
    assert (clone / ".venv/pyvenv.cfg").exists()


def test_a_package_without_its_list_of_files_is_forgotten(clone: Path, run: Run) -> None:
    packages = clone / ".venv/lib/python3.11/site-packages"
    (packages / "whole-1.dist-info").mkdir(parents=True)
    (packages / "whole-1.dist-info/RECORD").write_text("")
    (packages / "half-1.dist-info").mkdir()
    run()
    assert [path.name for path in packages.iterdir()] == ["whole-1.dist-info"]


def test_a_tree_that_is_not_a_clone_is_refused_in_one_line(clone: Path, run: Run) -> None:
    (clone / "constraints.txt").unlink()
    assert run().stderr.endswith("constraints.txt (No such file or directory); is this a whole clone?\n")


def test_on_a_mac_the_plain_wheel_is_the_one_for_cpu() -> None:
    choose = load(ROOT / "deploy/bootstrap.py").choose_torch
    arguments, size, _ = choose("2.13.0", [], False, "", "darwin")
    assert arguments[-1] == "torch==2.13.0" and size == "about 200 MB"


def test_a_python_that_is_too_old_is_told_so() -> None:
    source = (ROOT / "deploy/bootstrap.py").read_text()
    old = "import sys; sys.version_info = (3, 8, 1, 'final', 0); exec(compile(sys.argv[1], 'bootstrap.py', 'exec'))"
    done = subprocess.run([sys.executable, "-c", old, source], capture_output=True, text=True, timeout=60)
    assert "Python 3.11, 3.12 or 3.13 is needed" in done.stderr and "is 3.8;" in done.stderr


def test_bootstrap_parses_on_the_oldest_python_a_machine_may_have() -> None:
    ast.parse((ROOT / "deploy/bootstrap.py").read_text(), feature_version=(3, 7))


def test_every_constraint_is_a_plain_pin() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []
    assert "torch==2.13.0" in lines
