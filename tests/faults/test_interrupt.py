"""Ctrl-C on real processes: once saves and can be gone on with bit for bit, twice ends at once and leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.storage.checkpoint import load_latest
from core.storage.store import read_run
from hanse.interrupt import interruptible

ROOT = Path(__file__).resolve().parents[2]
FILE = """\
data: {kind: image, path: "bundled:digits", augment: {crop: 1, noise: 0.1}}
model: {kind: cnn, channels: [4], hidden: 8, dropout: 0.2}
train: {steps: STEPS, batch_size: 32, accumulate: 2, log_every: 1}
"""
Process = subprocess.Popen[str]


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """Processes of a test, each in a session of its own as under a terminal; none outlives it."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start(started: list[Process], file: Path, *words: str) -> Process:
    process = subprocess.Popen(
        [sys.executable, "-m", "hanse", "train", str(file), *words, "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    started.append(process)
    return process


def read_until(process: Process, event: str, **fields: object) -> dict[str, object]:
    """The first line on standard output with this event and these fields."""
    assert process.stdout is not None
    for line in process.stdout:
        record: dict[str, object] = json.loads(line)
        if record["event"] == event and fields.items() <= record.items():
            return record
    raise AssertionError(f"ended before {event} {fields}: {process.stderr.read() if process.stderr else ''}")


def ctrl_c(process: Process, number: int = signal.SIGINT) -> None:
    """As a terminal does it: to the whole foreground group, Ray's processes included."""
    os.killpg(process.pid, number)


def config(tmp_path: Path, steps: int) -> Path:
    path = tmp_path / "digits.yaml"
    path.write_text(FILE.replace("STEPS", str(steps)))
    return path


@pytest.mark.parametrize("is_ignored", [False, True], ids=["closed", "nohup"])
def test_a_closed_terminal_saves_and_ends_a_run_unless_it_was_started_to_outlive_it(
    is_ignored: bool, tmp_path: Path, started: list[Process]
) -> None:
    command = [
        sys.executable,
        "-m",
        "hanse",
        "train",
        str(config(tmp_path, 600)),
        f"run_dir={tmp_path / 'run'}",
        "--json",
    ]
    process = subprocess.Popen(
        # the tests may run under nohup themselves
        [*(["nohup"] if is_ignored else ["env", "--default-signal=HUP"]), *command],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    started.append(process)
    read_until(process, "progress", step=5)
    ctrl_c(process, signal.SIGHUP)
    out, err = process.communicate(timeout=120)
    steps = json.loads(out.splitlines()[-1])["summary"]["steps"]
    status = read_run(tmp_path / "run").status
    if is_ignored:
        assert (process.returncode, status, steps) == (0, "done", 600), err
    else:
        assert (process.returncode, status) == (130, "stopped"), err
        assert 5 <= steps < 600


def test_a_run_stopped_by_ctrl_c_goes_on_to_the_weights_of_an_undisturbed_one(
    tmp_path: Path, started: list[Process]
) -> None:
    file, run = config(tmp_path, 500), f"run_dir={tmp_path / 'stopped'}"
    whole = start(started, file, f"run_dir={tmp_path / 'whole'}")
    stopped = start(started, file, run)
    read_until(stopped, "progress", step=20)
    ctrl_c(stopped)
    out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, err
    end = json.loads(out.splitlines()[-1])
    step = end["summary"]["steps"]
    assert end["event"] == "end" and end["summary"]["ended"] == "stopped" and 20 <= step < 500
    assert read_run(tmp_path / "stopped").status == "stopped"
    snapshot = load_latest(tmp_path / "stopped" / "checkpoints").snapshot
    assert snapshot is not None and snapshot.step == step  # not a step is lost
    resumed = start(started, file, run, "resume=true")
    assert read_until(resumed, "started")["step"] == step
    ends = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in (whole, resumed)]
    assert ends[0]["summary"]["weights_sha256"] == ends[1]["summary"]["weights_sha256"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_signal_ends_at_once_and_leaves_a_readable_run(
    number: int, tmp_path: Path, started: list[Process]
) -> None:
    """The step under way never ends: the main thread is stopped inside it, as in a kernel that hangs."""
    file = config(tmp_path, 10**6)
    stuck = "import core.train, threading\ncore.train.train_step = lambda *a, **k: threading.Event().wait()\n"
    code = f"{stuck}import sys\nfrom hanse.cli import main\nsys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", str(file), f"run_dir={tmp_path / 'run'}", "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    started.append(process)
    read_until(process, "started")
    ctrl_c(process, number)
    assert "again ends at once" in str(read_until(process, "stopping")["message"])
    ctrl_c(process, number)
    process.communicate(timeout=20)
    assert process.returncode == 130
    run = read_run(tmp_path / "run")
    assert run.status == "stopped" and "second signal" in str(run.record["error"])


@pytest.mark.ray
def test_ctrl_c_stops_a_run_on_ray_workers_with_a_checkpoint_and_a_second_one_ends_ray(
    tmp_path: Path, started: list[Process]
) -> None:
    file, words = config(tmp_path, 10**6), (f"run_dir={tmp_path / 'run'}", "workers=1", "resume=true")
    first = start(started, file, *words)
    read_until(first, "progress", step=5)
    ctrl_c(first)
    out, err = first.communicate(timeout=90)
    assert first.returncode == 130, err
    step = json.loads(out.splitlines()[-1])["summary"]["steps"]
    assert read_run(tmp_path / "run").status == "stopped"
    second = start(started, file, *words)
    assert read_until(second, "started")["step"] == step
    read_until(second, "progress")
    children = psutil.Process(second.pid).children(recursive=True)
    assert len(children) > 2
    ctrl_c(second)
    ctrl_c(second)
    second.communicate(timeout=30)
    assert second.returncode == 130
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_a_second_ctrl_c_ends_the_processes_of_a_pool_and_leaves_no_files(
    tmp_path: Path, started: list[Process]
) -> None:
    words = ("repeat.seeds=2", "workers=2", "cpus_per_worker=0.5", f"run_dir={tmp_path / 'run'}")
    process = start(started, config(tmp_path, 10**6), *words)
    read_until(process, "progress")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3, "a server and two workers"
    (folder,) = {part for part in children[0].cmdline()[-1].split('"') if "/hanse-pool-" in part and "shm" in part}
    assert Path(folder).is_dir()
    for worker in children[1:]:
        worker.suspend()  # so that the first one is never done with
    ctrl_c(process)
    read_until(process, "stopping")
    ctrl_c(process)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert not Path(folder).exists()


def test_handlers_are_given_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    asked = []
    with interruptible(lambda: asked.append(1), lambda: None) as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 30
        while not stopping() and time.monotonic() < deadline:
            os.sched_yield()
        assert stopping()
    assert asked == [1]
    assert [signal.getsignal(number) for number in numbers] == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
