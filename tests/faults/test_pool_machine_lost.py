"""A machine of a cluster crashes with an item of a pool on it: real Ray nodes on this host."""

import os
import secrets
import threading
import time
from pathlib import Path

import psutil
import pytest

from cluster.pool import ray_pool
from core.pool import Done
from tests.pool_work import DEADLINE_S, meet

# Ray warns about its own deprecated settings in this process, which starts it
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


def test_an_item_on_a_machine_that_is_lost_runs_again_on_another(tmp_path: Path) -> None:
    """A cluster at an address, whose head takes no work; one of its two other machines crashes with an item."""
    for name, value in {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
        os.environ.setdefault(
            name, value
        )  # Ray reads them once in a process, which may open a session of its own later
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
    files = [tmp_path / "first", tmp_path / "second"]
    try:
        with ray_pool(2, address=cluster.address) as pool:
            # each item waits for a file that comes when the lost machine's worker is dead
            running = pool.run(meet, {i: (file, [tmp_path / "gone"]) for i, file in enumerate(files)})
            found: list[Done[int, int]] = []
            done = threading.Thread(target=lambda: found.extend(running))
            done.start()
            meet((tmp_path / "here", files))
            workers = [psutil.Process(int(member.place.split()[1])) for member in pool.members]
            cluster.remove_node(machines[0], allow_graceful=False)
            deadline = time.monotonic() + DEADLINE_S
            while all(worker.is_running() for worker in workers) and time.monotonic() < deadline:
                threading.Event().wait(0.01)
            (tmp_path / "gone").touch()
            done.join(DEADLINE_S)
    finally:
        cluster.shutdown()
    assert sorted(d.key for d in found) == [0, 1]
    assert sorted(file.read_text() for file in files) == ["x", "xx"]
