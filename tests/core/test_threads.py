"""How torch's threads wait for each other."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP tells its settings")
@pytest.mark.parametrize("told, sleeps", [(None, True), ("ACTIVE", False)])
def test_threads_that_wait_sleep_unless_told_otherwise(told: str | None, sleeps: bool) -> None:
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {"OMP_DISPLAY_ENV": "verbose", **({"OMP_WAIT_POLICY": told} if told else {})}
    done = subprocess.run(
        [sys.executable, "-c", "import core, torch"], env=env, capture_output=True, text=True, check=True
    )
    assert "GOMP_SPINCOUNT" in done.stderr
    assert ("GOMP_SPINCOUNT = '0'" in done.stderr) == sleeps
