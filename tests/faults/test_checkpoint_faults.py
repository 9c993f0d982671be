"""Real processes that are killed, or run out of room, in the middle of writing a checkpoint."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.errors import ResourceError
from core.storage.checkpoint import Checkpointer, Snapshot, load_best, load_latest

ROOT = Path(__file__).parents[2]

# Forks a writer per file operation; each counts its operations and is killed by SIGKILL at one of them, in the middle
# of it if it is a write. Two good checkpoints lie there before: what was good must survive whatever happens next.
KILL = """
import os, shutil, signal, sys
from pathlib import Path
import torch
from core.storage.checkpoint import Checkpointer, Snapshot

def snapshot(step):
    return Snapshot(step, {"model": {"w": torch.full((300,), float(step))}}, {"seen": step})

def killed_at(number):
    count = 0
    def wrap(name):
        call = getattr(os, name)
        def counted(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                if name == "write":
                    call(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        setattr(os, name, counted)
    for name in ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir"):
        wrap(name)

def kills(root, steps):
    with Checkpointer(root / "before", keep_last=1) as checkpoints:
        checkpoints.save(snapshot(1), best=True)
        checkpoints.save(snapshot(2))
    number = 0
    while True:
        number += 1
        shutil.copytree(root / "before", root / str(number))
        child = os.fork()
        if child == 0:
            checkpoints = Checkpointer(root / str(number), keep_last=1)
            killed_at(number)
            for step in steps:
                checkpoints.save(snapshot(step), best=step == 3)
            checkpoints.close()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0, status
            return number - 1

for name, steps in (("new", (3, 4)), ("same", (2,))):
    print(kills(Path(sys.argv[1]) / name, steps))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """Directories left by killed writers, one per file operation: those of two new steps, and of a step saved again."""
    root = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(root)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root, dict(zip(("new", "same"), map(int, done.stdout.split()), strict=True))


@pytest.mark.parametrize("saves", ["new", "same"])
def test_a_kill_at_any_file_operation_leaves_the_state_before_or_after(killed, saves):
    root, kills = killed
    assert kills[saves] > 20
    last = 2
    for number in range(1, kills[saves] + 1):
        directory = root / saves / str(number)
        Checkpointer(directory).close()  # what the next process of the run does first
        loaded, rejected = load_latest(directory)
        assert rejected == (), number
        assert loaded.step >= last, number  # what was finished before the kill is never lost
        last = loaded.step
        assert loaded.state == {"seen": loaded.step}
        assert torch.equal(loaded.tensors["model"]["w"], torch.full((300,), float(loaded.step)))
        assert load_best(directory).step in (1, 3)
        assert not list(directory.glob(".tmp-*"))
    assert last == {"new": 4, "same": 2}[saves]


def test_everything_is_on_the_disk_before_the_checkpoint_gets_its_name(tmp_path, monkeypatch):
    log, paths = [], {}
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def opened(path, *args):
        fd = real_open(path, *args)
        paths[fd] = Path(path).name
        return fd

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", lambda fd: (log.append(("sync", paths[fd])), real_fsync(fd))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (log.append(("name", Path(b).name)), real_rename(a, b))[1])
    with Checkpointer(tmp_path / "checkpoints", asynchronous=False) as checkpoints:
        checkpoints.save(Snapshot(1, {"model": {}, "optimizer": {}}))
    assert log == [
        ("sync", "model.safetensors"),
        ("sync", "optimizer.safetensors"),
        ("sync", "state.json"),
        ("sync", "manifest.json"),
        ("sync", ".tmp-step-000001"),
        ("name", "step-000001"),
        ("sync", "checkpoints"),
        ("sync", ".tmp-last"),
        ("sync", "checkpoints"),
    ]


def test_a_file_size_limit_of_the_system_stops_the_write_and_not_the_last_good_checkpoint(tmp_path):
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(Snapshot(1, {"model": {"w": torch.ones(10)}}))
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        checkpoints.save(Snapshot(2, {"model": {"w": torch.ones(1_000_000)}}))
        with pytest.raises(ResourceError, match="step 2 was not written: File too large; step-000001 is kept"):
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_latest(tmp_path).snapshot.step == 1
    assert {path.name for path in tmp_path.iterdir()} == {"step-000001", "last"}
