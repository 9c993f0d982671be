"""A server that is killed at any moment, and a worker of its pool."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.pool import ProcessPool
from federated.engine import PoolEngine
from tests.federated.kill_points import WATCHED
from tests.federated.killing import Killing
from tests.federated.reference import served
from tests.federated.test_engines import federation, local
from tests.fuzz.hostile import SWEEP

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_server_killed_at_a_point_of_each_kind_comes_to_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.federated.kill_points", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=280 * SWEEP)
    assert done.returncode == 0, done.stderr
    sound, *killed = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = {f"{place} {kind.__name__}.{name}" for kind, name in WATCHED for place in ("before", "after")}
    assert {line["point"] for line in killed} == kinds and sound["points"] > 50
    assert {line["weights"] for line in killed} == {sound["weights"]}


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_round_changes_no_bit(tmp_path: Path) -> None:
    found = federation(strategy={"kind": "scaffold"}, clients=20, cohort=10, backend="loop")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        wanted = served(found, local(found))
    finally:
        torch.set_num_threads(threads)
    victim = list(found.schedule.plans())[1].jobs[-1].client
    marker = tmp_path / "killed"
    killing = replace(found, clients=Killing(found.clients, victim, str(marker)))
    with ProcessPool(2) as pool:
        got = served(killing, PoolEngine(pool, killing.setting))
    assert marker.exists(), "a worker was killed"
    assert torch.equal(got, wanted)
