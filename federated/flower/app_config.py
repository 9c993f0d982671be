"""The run of a Flower app's run config, which may hold text: the whole config as YAML. And the names of its keys."""

from core.config import parse_run, read_text
from federated import support
from federated.run import FederateRun

CONFIG, RUN_DIR = "config", "run-dir"
OWN_DATA = "own-data"  # whether each node reads its own files: `own_data.py`
JOINED = "run-dir-is-held"  # by the process that started this deployment, which made it


def run_of(config: str) -> FederateRun:
    """Raises ConfigError."""
    run = parse_run(FederateRun, read_text(config, CONFIG))
    support.check(run)
    return run
