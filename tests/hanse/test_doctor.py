"""`hanse doctor` sees what is wrong with a machine, says how to fix it, and leaves nothing behind."""

import importlib.metadata
import json
import os
import sys
import tempfile
from collections import namedtuple
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hanse.commands import doctor as room
from hanse.commands.doctor import Finding, doctor, probe
from tests.crew_contract import wait_until

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow probes of libraries are answered at once."""
    monkeypatch.setattr(room, "probe", lambda code, **_: {"version": "1.0", "devices": ["cpu"], "seconds": 0.5})
    monkeypatch.setattr(room, "packages", lambda: Finding("packages", "ok", "fine"))


@pytest.mark.usefixtures("quick")
def test_a_good_machine_gets_a_line_per_check_and_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor() == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines if line.startswith("ok ")} >= {"python", "torch", "flwr", "ray", "runs"}
    assert lines[-1] == "next    hanse demo"


@pytest.mark.usefixtures("quick")
def test_one_failure_is_status_4_with_its_fix_on_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "probe", lambda code, **_: {"error": "ImportError: libgomp.so.1"})
    assert doctor(ray=False) == 4
    said = capsys.readouterr().out
    assert "fail  torch          ImportError: libgomp.so.1; fix: rm -rf .venv && make setup" in said
    assert "ray  " not in said and "hanse demo" not in said


@pytest.mark.usefixtures("quick")
def test_json_has_an_event_per_check_and_counts_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    doctor(json=True)
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(r) == {"event", "name", "status", "detail", "fix"} for r in records[:-1])
    assert records[-1]["event"] == "end" and records[-1]["run"] is None
    assert sum(records[-1]["summary"].values()) == len(records) - 1


def test_the_tested_set_of_packages_has_no_disagreement() -> None:
    assert room.packages() == Finding("packages", "ok", "all versions are in the ranges that were tested")


def test_a_package_outside_its_range_is_named_with_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [
        SimpleNamespace(
            name="hanse", version="0.1.0", requires=["torch>=2.13,<2.14", "pytest; extra == 'test'", "gone"]
        ),
        SimpleNamespace(name="flwr", version="1.41.0", requires=["Rich_Text<15"]),
        SimpleNamespace(name="torch", version="2.13.0+cpu", requires=None),
        SimpleNamespace(name="rich.text", version="15.1", requires=None),
    ]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: installed)
    assert list(room.disagreements()) == [
        "hanse 0.1.0 needs gone, which is not installed",
        "flwr 1.41.0 needs Rich_Text<15, and 15.1 is installed",
    ]
    assert room.packages().status == "fail" and room.packages().detail.endswith(" and 1 more")


def test_a_foreign_package_with_our_name_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert room.names().status == "ok"
    foreign = ModuleSpec("core", None, origin=str(tmp_path / "core/__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: foreign)
    assert room.names().status == "fail" and str(tmp_path) in room.names().detail


def test_a_cpu_build_beside_an_nvidia_driver_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "probe", lambda code: {"version": "2.13.0+cpu", "devices": ["cpu"]})
    monkeypatch.setattr(room.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert room.torch().status == "warn" and "HANSE_GPU=1 make setup" in room.torch().fix


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "10000")
    assert room.cores().status == "warn"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert room.cores().status == "ok"


@pytest.mark.parametrize("free, status", [(10e9, "ok"), (2e9, "warn"), (1e8, "fail")])
def test_little_room_for_runs_is_a_warning_and_none_a_failure(
    free: float, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Usage(1e12, 0, free))
    assert room.runs().status == status


def test_a_runs_folder_that_is_a_file_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HANSE_RUNS", str(tmp_path / "file/runs"))
    assert room.runs().status == "fail" and not (tmp_path / "runs").exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this system has no shared memory folder")
def test_a_small_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Usage(64e6, 0, 64e6))
    assert room.shared_memory().status == "warn"


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e9, total=8e9))
    assert room.memory() == Finding("memory", "warn", "1.0 GB of 8.0 GB free", room.memory().fix)


def test_a_ray_token_that_others_can_read_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert room.ray_token().detail == "none yet"
    token.write_text("secret")
    token.chmod(0o644)
    assert room.ray_token().status == "warn" and room.ray_token().fix == f"chmod 600 {token}"
    token.chmod(0o600)
    assert room.ray_token().status == "ok"


def test_a_probe_tells_the_last_line_of_what_crashed() -> None:
    assert probe("import no_such_library")["error"] == "ModuleNotFoundError: No module named 'no_such_library'"
    assert probe("import os; os._exit(7)") == {"error": "ended with status 7"}
    assert probe("print('noise'); answer(x=1)") == {"x": 1}


def is_there(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_probe_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    code = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
child.wait()
"""
    assert probe(code, timeout_s=3) == {"error": "no answer within 3 s"}  # time for an interpreter on a busy machine
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_there(pid))  # on a busy machine what is killed is there until it is its turn
    assert not is_there(pid)


def test_a_probe_does_not_join_the_cluster_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    assert probe("import os; answer(address=os.environ.get('RAY_ADDRESS'))") == {"address": None}


@pytest.mark.ray
def test_ray_starts_runs_a_task_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tempfile.mkdtemp(prefix="d-", dir="/tmp")  # the path of Ray's socket has to be short
    monkeypatch.setenv("RAY_TMPDIR", folder)
    had_ray = "ray" in sys.modules  # of a test before this one
    finding = room.ray_start()
    assert finding.status == "ok" and "ran a task" in finding.detail, finding
    os.rmdir(folder)  # OSError if anything is left in it
    assert not (tmp_path / ".ray").exists()
    ours = [p for p in psutil.Process(os.getpid()).children(recursive=True) if p.name() in {"raylet", "gcs_server"}]
    assert ours == [] and ("ray" in sys.modules) == had_ray
