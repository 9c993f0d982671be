"""A server that is killed at any moment, and a worker of its pool."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_server_killed_at_twelve_points_comes_to_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.federated.kill_points", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    sound, *killed = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(killed) == 12 and len({line["at"] for line in killed}) == 12 and sound["points"] > 50
    assert {line["weights"] for line in killed} == {sound["weights"]}
