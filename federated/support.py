"""What does not go together in a federation: each combination with its reason and the way out.

A row is (name, whether it applies, the message); a test walks every row.
"""

from collections.abc import Callable

from core.errors import ConfigError
from core.recipe import has_batch_norm
from core.support import check_recipe
from federated.exchange import collects
from federated.run import FederateRun
from federated.strategies.theirs import Theirs
from federated.transforms import TransformConfig
from federated.transforms.chain import require

Row = tuple[str, Callable[[FederateRun], bool], str]

LEARNING = ("FedAvgM", "FedAdagrad", "FedAdam", "FedYogi")  # of Flower's: the mean update is a gradient

ROWS: tuple[Row, ...] = (
    (
        "early stopping of clients",
        lambda run: run.recipe.train.patience is not None or run.recipe.train.keep == "best",
        "train.patience: clients train for local_epochs and do not judge; leave train.patience and train.keep out",
    ),
    (
        "epochs of the whole data",
        lambda run: run.recipe.train.epochs is not None,
        "train.epochs: clients train for local_epochs in each round; set local_epochs and rounds, and leave it out",
    ),
    (
        "shards of the batch",
        lambda run: run.recipe.train.shards > 1,
        "train.shards: each client trains in one process, so they change nothing; set train.shards=1",
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
        "a weighting of replies that count once",
        lambda run: getattr(run.strategy, "counts_once", False) and any(t.kind == "weighting" for t in run.transforms),
        "transforms: the replies of this strategy count once each, by its paper; leave the weighting out",
    ),
    (
        "control variates through a compression without error feedback",
        lambda run: run.strategy.kind == "scaffold" and any(_is_lossy(t) for t in run.transforms),
        "transforms: compressed without error feedback, control variates drift apart from the server's; set "
        "error_feedback=true",
    ),
    (
        "batch statistics that a server's learning rate scales",
        lambda run: (
            has_batch_norm(run.recipe)
            and getattr(run.strategy, "scales_buffers", False)
            and getattr(run.strategy, "server_lr", 1.0) != 1.0
        ),
        "strategy.server_lr: here it scales batch statistics too, which are averages; set it to 1, or use "
        "model.norm=group, or strategy.kind=fedavgm with server_momentum=0, which scales only what is learned",
    ),
    (
        "batch statistics of an asynchronous strategy",
        lambda run: has_batch_norm(run.recipe) and run.is_asynchronous,
        "strategy.kind: an asynchronous server adds up changes from statistics that are not its own any more, and a "
        "variance may fall below 0; use model.norm=group, or a strategy that waits for its cohort",
    ),
    (
        "batch statistics with centered clipping",
        lambda run: has_batch_norm(run.recipe) and run.strategy.kind == "centered_clipping",
        "strategy.kind: centered_clipping goes on where the last round went, and a variance may fall below 0; use "
        "model.norm=group, or another robust rule",
    ),
    (
        "batch statistics with an optimizer of Flower's at the server",
        lambda run: has_batch_norm(run.recipe) and isinstance(run.strategy, Theirs) and run.strategy.name in LEARNING,
        "strategy.name: Flower's server optimizers move batch statistics as if they were learned, and a variance may "
        "fall below 0; use the strategy of ours (fedavgm, fedadagrad, fedadam, fedyogi), or model.norm=group",
    ),
    (
        "a learning rate of 0 where updates are divided by it",
        lambda run: run.strategy.kind in ("scaffold", "qfedavg") and getattr(run.recipe.schedule, "level", 1.0) == 0,
        "schedule.level: this strategy divides updates by the learning rate, so it must be above 0",
    ),
    (
        "a strategy of Flower's with a cohort",
        lambda run: isinstance(run.strategy, Theirs) and run.cohort is not None,
        "cohort: Flower's strategy decides how many train, by strategy.arguments.fraction_train; leave cohort out",
    ),
    (
        "a strategy of Flower's with a choice of judges",
        lambda run: isinstance(run.strategy, Theirs) and run.evaluate.clients is not None,
        "evaluate.clients: Flower's strategy decides how many judge, by strategy.arguments.fraction_evaluate; leave "
        "evaluate.clients out",
    ),
    (
        "a strategy of Flower's with transforms",
        lambda run: isinstance(run.strategy, Theirs) and bool(run.transforms),
        "transforms: Flower's strategies are sent weights, and transforms change updates; leave transforms out, or "
        "use a strategy of another kind",
    ),
    (
        "a strategy of Flower's with devices",
        lambda run: isinstance(run.strategy, Theirs) and run.devices is not None,
        "devices: Flower's strategies know no virtual clock; leave devices out, or use a strategy of another kind",
    ),
    (
        "a strategy of Flower's with an attack",
        lambda run: isinstance(run.strategy, Theirs) and run.attack is not None,
        "attack: attackers change updates, and Flower's strategies are sent weights; leave attack out, or use a "
        "strategy of another kind",
    ),
    (
        "a strategy of Flower's with a largest norm",
        lambda run: isinstance(run.strategy, Theirs) and run.max_norm is not None,
        "max_norm: it bounds an update, and Flower's strategies are sent weights; leave max_norm out, or use a "
        "strategy of another kind",
    ),
    (
        "a strategy of Flower's that goes on",
        lambda run: isinstance(run.strategy, Theirs) and run.resume is not False,
        "resume: Flower's strategies begin at round 1 and cannot go on; start a new run, with init=RUN if its model "
        "is to be the first",
    ),
    (
        "a GPU for the workers of a pool",
        lambda run: run.engine == "pool" and run.device == "cuda",
        "device: the workers of engine=pool have no share of a GPU; use engine=inproc, or leave device out",
    ),
    (
        "an address without a pool",
        lambda run: run.address is not None and run.engine != "pool",
        "address: only engine=pool uses a Ray cluster; set engine=pool",
    ),
)


def _is_lossy(transform: TransformConfig) -> bool:
    return not getattr(transform, "error_feedback", True)


def check(run: FederateRun) -> None:
    """Raises ConfigError for what core refuses of the recipe, for the first row that applies, for a senseless order of
    transforms, or for an optimizer for which the strategy's formulas do not hold."""
    check_recipe(run.recipe)
    for _, applies, message in ROWS:
        if applies(run):
            raise ConfigError(message)
    require(run.transforms)
    if run.statistics:
        run.statistics.require_unweighted(run.recipe.data)
    refuse = getattr(run.strategy, "require_optimizer", None)
    if refuse:
        refuse(run.recipe.optimizer)
