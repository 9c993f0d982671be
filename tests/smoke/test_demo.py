"""The main job on real data, as a newcomer runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.storage.artifact import read_weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.ray
def test_the_demo_reaches_98_percent_and_the_same_weights_from_two_workers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hanse", "demo", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["where"] for line in lines if line["event"] == "demo"] == ["in this process", "on 2 Ray workers"]
    found = lines[-1]["summary"]
    assert found["test"]["accuracy"] >= 0.98
    assert found["weights"] == "the same to the last bit"
    runs = [Path(os.environ["HANSE_RUNS"]) / line["run"] for line in lines if line["event"] == "demo"]
    first, second = (read_weights(run / "model") for run in runs)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
