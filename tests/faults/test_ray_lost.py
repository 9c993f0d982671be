"""A Ray of our own that dies under a run, or whose driver is killed; one that cannot start. Nothing of it is left."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster import keeper
from cluster.embedded import set_token
from cluster.session import set_environment
from core.errors import LostError, ResourceError
from core.storage.store import RunDirectory, read_run

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
data: {kind: image, path: "bundled:digits"}
model: {kind: cnn, channels: [4], hidden: 8}
train: {steps: 1000000, batch_size: 32, log_every: 1, checkpoint_every: 10}
"""


@pytest.fixture(autouse=True)
def settings() -> None:
    """As before any session: what the first import of Ray reads, here and for the files that are tested after this."""
    set_environment()
    set_token()


def start(tmp_path: Path, *words: str) -> tuple["subprocess.Popen[str]", list[psutil.Process]]:
    """A training on one worker of its own Ray that has saved something, and all the processes it has started."""
    (tmp_path / "digits.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "hanse", "train", "digits.yaml", "run_dir=run", "workers=1", *words, "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": "/tmp"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("step", 0) > 20:
            return process, psutil.Process(process.pid).children(recursive=True)
    raise AssertionError(process.communicate()[1])


def folder_of(processes: list[psutil.Process]) -> Path:
    (folder,) = {Path(p.cmdline()[-1]) for p in processes if p.cmdline()[1:2] == [keeper.__file__]}
    return folder


@pytest.mark.ray
def test_a_run_whose_ray_dies_or_that_is_killed_leaves_no_process_and_says_how_it_goes_on(tmp_path: Path) -> None:
    run, processes = start(tmp_path)
    folder = folder_of(processes)
    assert folder.stat().st_mode & 0o777 == 0o700
    next(process for process in processes if process.name() == "gcs_server").kill()
    _, err = run.communicate(timeout=60)
    assert run.returncode == 5
    said = "hanse: Ray's process gcs_server has died, and Ray with it; go on with: hanse train digits.yaml workers=1"
    assert [line for line in err.splitlines() if line.startswith("hanse:")] == [f"{said} resume=run"]
    assert read_run(tmp_path / "run").status == "failed"
    assert psutil.wait_procs(processes, timeout=30)[1] == [] and not folder.exists()

    run, processes = start(tmp_path, "resume=true")
    folder = folder_of(processes)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert read_run(tmp_path / "run").status == "killed"
    assert psutil.wait_procs(processes, timeout=30)[1] == [] and not folder.exists()


def test_a_controller_that_dies_is_one_line_and_no_fault_of_the_run(tmp_path: Path) -> None:
    from ray.exceptions import ActorDiedError

    from cluster.data_parallel import _explained

    with RunDirectory.create(tmp_path / "run") as directory:
        error = _explained(ActorDiedError(), directory)
    assert isinstance(error, LostError) and error.exit_code == 5
    assert str(error).startswith("Ray Train's controller died: ") and "\n" not in str(error)


def test_a_ray_that_does_not_start_says_that_the_machine_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from cluster.session import session

    def slow(**arguments: object) -> None:
        raise Exception("The current node timed out during startup.\nAnd more.")

    monkeypatch.setattr(ray, "init", slow)
    monkeypatch.setattr(os, "getloadavg", lambda: (30.0, 30.0, 30.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    said = r"did not start .*timed out .*busy \(load 30 on 2 CPUs\)"
    with pytest.raises(ResourceError, match=said) as caught, session(None, 1):
        raise AssertionError
    assert "\n" not in str(caught.value)


def test_ray_has_more_time_to_start_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.embedded import TIMES_S, embedded

    monkeypatch.setattr(os, "getloadavg", lambda: (6.0, 6.0, 6.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with embedded():
        assert {name: os.environ[name] for name in TIMES_S} == {name: str(3 * s) for name, s in TIMES_S.items()}
    assert not TIMES_S.keys() & os.environ.keys()


def test_too_low_a_limit_on_open_files_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.session import session

    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    said = r"up to 140 files and this process may open 64; .*`ulimit -n 140`"
    with pytest.raises(ResourceError, match=said), session(None, 1):
        raise AssertionError
