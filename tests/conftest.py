"""What every test stands on: quiet libraries, no network, results in a temporary folder, core first and Ray last.

HANSE_TEST_WITHOUT=ray,flwr pytest tests/core    runs with these packages as good as not installed
"""

import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

# Before torch is imported: two threads per process on a small machine cost more in switching than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)  # a cluster of the caller is not for tests
os.environ["NO_COLOR"] = "1"  # output is compared as plain text; what the caller's terminal can do is no matter

# A shell lets what it starts in the background ignore Ctrl-C; tests press it, and their processes inherit what is set.
signal.signal(signal.SIGINT, signal.default_int_handler)

# None makes `import NAME` raise ModuleNotFoundError and `find_spec(NAME)` return None: as if it were not installed.
for _name in filter(None, os.environ.get("HANSE_TEST_WITHOUT", "").split(",")):
    sys.modules[_name] = None  # type: ignore[assignment]

# A busy machine makes any example slow: a deadline would fail what is right.
hypothesis.settings.register_profile("without deadlines", deadline=None)
hypothesis.settings.load_profile("without deadlines")

ROOMS = ("core", "architecture", "deploy", "cluster", "federated", "smoke", "parity", "faults", "fuzz", "hanse")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Core first: what everything stands on says first where it is broken. Tests that start Ray come last; but where
    files are tested side by side, those with tests that take long come first, so that none is left alone at the end."""
    root, is_side_by_side = Path(__file__).parent, hasattr(config, "workerinput")
    slow = {item.path for item in items if item.get_closest_marker("ray") or item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> tuple[bool, int]:
        room = item.path.relative_to(root).parts[0] if item.path.is_relative_to(root) else ""
        is_late = item.path not in slow if is_side_by_side else item.get_closest_marker("ray") is not None
        return is_late, ROOMS.index(room) if room in ROOMS else len(ROOMS)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _runs_go_to_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANSE_RUNS", str(tmp_path / "runs"))
