"""What does not go together in a federation: each combination with its reason and the way out.

A row is (name, whether it applies, the message); a test walks every row.
"""

from collections.abc import Callable

from core.errors import ConfigError
from federated.exchange import collects
from federated.run import FederateRun
from federated.transforms.chain import require

Row = tuple[str, Callable[[FederateRun], bool], str]

ROWS: tuple[Row, ...] = (
    (
        "early stopping of clients",
        lambda run: run.recipe.train.patience is not None or run.recipe.train.keep == "best",
        "train.patience: clients train for local_epochs and do not judge; leave train.patience and train.keep out",
    ),
    (
        "fp16",
        lambda run: run.recipe.train.precision == "fp16",
        "train.precision: fp16 scales losses by what came before, which clients do not share; use bf16 or fp32",
    ),
    (
        "an asynchronous strategy with a cohort",
        lambda run: run.is_asynchronous and run.cohort is not None,
        "cohort: an asynchronous server steps after strategy.buffer replies, not after a cohort's; leave cohort out",
    ),
    (
        "an asynchronous strategy with colluding attackers",
        lambda run: run.is_asynchronous and run.attack is not None and run.attack.is_colluding,
        "attack: colluding attackers need to see the replies of one round, which an asynchronous server does not have; "
        "use another attack",
    ),
    (
        "a robust rule with a weighting",
        lambda run: collects(run.strategy) and any(t.kind == "weighting" for t in run.transforms),
        "transforms: a robust rule counts every client once, so a weighting changes nothing; leave it out",
    ),
    (
        "an address without a pool",
        lambda run: run.address is not None and run.engine != "pool",
        "address: only engine=pool uses a Ray cluster; set engine=pool",
    ),
)


def check(run: FederateRun) -> None:
    """Raises ConfigError for the first row that applies, or a senseless order of transforms."""
    for _, applies, message in ROWS:
        if applies(run):
            raise ConfigError(message)
    require(run.transforms)
