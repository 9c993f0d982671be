"""The main job on real data, as a newcomer runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert found["weights that differ by a bit"] == 0
