"""The run of a Flower app's run config, which may hold text: the whole config as YAML."""

from core.config import parse_run, read_text
from federated import support
from federated.run import FederateRun


def run_of(config: str) -> FederateRun:
    """Raises ConfigError."""
    run = parse_run(FederateRun, read_text(config, "config"))
    support.check(run)
    return run
