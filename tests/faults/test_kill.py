"""`kill -9` at any moment of a run, then the same command again: the final weights are those of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
data: {kind: image, augment: {crop: 1, noise: 0.05}}
model: {kind: cnn, channels: [8, 8], dropout: 0.2}
train: {steps: 60, batch_size: 64, accumulate: 2, log_every: 1, checkpoint_every: 7, evaluate_every: 20}
"""


def hanse(folder: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "hanse", "train", str(folder / "c.yaml"), *words, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=os.getcwd())


def finish(process: "subprocess.Popen[str]") -> dict[str, object]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    end = json.loads(out.splitlines()[-1])
    assert end["event"] == "end"
    return dict(end["summary"])


def kill_after_step(process: "subprocess.Popen[str]", step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("step", 0) >= step:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    undisturbed = finish(hanse(tmp_path, f"run_dir={tmp_path}/whole"))
    run = f"run_dir={tmp_path}/killed"
    kill_after_step(hanse(tmp_path, run), 3)  # before the first checkpoint
    kill_after_step(hanse(tmp_path, run, "resume=true"), 23)
    kill_after_step(hanse(tmp_path, run, "resume=true"), 41)
    resumed = finish(hanse(tmp_path, run, "resume=true"))
    assert resumed["weights_sha256"] == undisturbed["weights_sha256"]
    assert resumed["metrics"] == undisturbed["metrics"]
    curves = [_curve(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")]
    assert curves[0] == curves[1]  # no step is missing, and none is there twice


def _curve(path: Path) -> list[tuple[str, int, float]]:
    records = map(json.loads, path.read_text().splitlines())
    return [(r["split"], r["step"], r["loss"]) for r in records]
