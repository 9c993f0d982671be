"""What goes with what: the combinations that Hanse refuses, each with its reason and the way out.

A row is (name, whether it applies, the message). `ARCHITECTURE.md` shows this table; a test walks every row.
"""

from collections.abc import Callable

from core.data import Image, Text
from core.errors import ConfigError
from core.recipe import Elastic, Recipe, Training, TrainRun, has_batch_norm

Row = tuple[str, Callable[[TrainRun], bool], str]
RecipeRow = tuple[str, Callable[[Recipe], bool], str]


def _mixes(data: Image) -> bool:
    return data.augment.mixup > 0


def _divide(workers: int | Elastic, train: Training) -> bool:
    """Whether any number of workers that there may be shares out the shards evenly."""
    least, most = (workers.min, workers.max) if isinstance(workers, Elastic) else (workers, workers)
    return all(train.shards % max(1, count) == 0 for count in range(least, most + 1))


# What concerns the recipe alone, wherever it trains: here, in a repeat, at a federation's clients
RECIPE_ROWS: tuple[RecipeRow, ...] = (
    (
        "batch norm with accumulation",
        lambda recipe: recipe.train.micro_batches(1) > 1 and has_batch_norm(recipe),
        "model.norm: batch statistics depend on how a batch is split; use model.norm=group, or train.accumulate=1 and "
        "train.shards=1",
    ),
    (
        "batch norm with privacy",
        lambda recipe: recipe.privacy is not None and has_batch_norm(recipe),
        "model.norm: batch statistics let every example act on the gradients of the others; use model.norm=group",
    ),
    (
        "privacy with mixup",
        lambda recipe: recipe.privacy is not None and isinstance(recipe.data, Image) and _mixes(recipe.data),
        "data.augment.mixup: puts each example into the gradients of two rows, past its bound; set it to 0",
    ),
    (
        "privacy in fp16",
        lambda recipe: recipe.privacy is not None and recipe.train.precision == "fp16",
        "train.precision: fp16 scales gradients, and clipping must see their true size; use bf16 or fp32",
    ),
    (
        "privacy with compilation",
        lambda recipe: recipe.privacy is not None and recipe.train.compile is True,
        "train.compile: gradients of single examples are not compiled; use train.compile=false",
    ),
)

ROWS: tuple[Row, ...] = (
    (
        "batch norm on several workers",
        lambda run: run.repeat is None and run.workers not in (0, 1) and has_batch_norm(run.recipe),
        "model.norm: batch statistics depend on how a batch is split over workers; use model.norm=group, or workers=0",
    ),
    (
        "a repeat with FSDP",
        lambda run: run.repeat is not None and run.strategy == "fsdp",
        "strategy: fsdp shards one model over the workers, repeat gives each worker whole members; set strategy=ddp",
    ),
    (
        "a repeat with elastic workers",
        lambda run: run.repeat is not None and isinstance(run.workers, Elastic),
        "workers: repeat spreads its members over a pool of fixed size; write workers=N instead of min and max",
    ),
    (
        "a repeat over folds of one fold",
        lambda run: run.repeat is not None and run.repeat.folds > 0 and run.recipe.data.split.folds is not None,
        "data.split.folds: repeat.folds tests on every fold in turn; set data.split.folds=null and data.split.fold=0",
    ),
    (
        "a repeat over bootstraps of one bootstrap",
        lambda run: (
            run.repeat is not None and run.repeat.bootstraps > 0 and run.recipe.data.split.bootstrap is not None
        ),
        "data.split.bootstrap: repeat.bootstraps trains on many resamples; set data.split.bootstrap=null",
    ),
    (
        "a repeat over bootstraps with learned tokens",
        lambda run: (
            run.repeat is not None
            and run.repeat.bootstraps > 0
            and isinstance(run.recipe.data, Text)
            and run.recipe.data.tokenizer.kind == "bpe"
        ),
        "data.tokenizer: each resample of a text learns byte pairs of its own, whose probabilities cannot be averaged; "
        "use data.tokenizer.kind=byte, or repeat.seeds",
    ),
    (
        "FSDP in one process",
        lambda run: run.strategy == "fsdp" and run.workers in (0, 1),
        "strategy: fsdp shards over workers and there is one; set workers to 2 or more, or strategy=ddp",
    ),
    (
        "a repeat with shards of the batch",
        lambda run: run.repeat is not None and run.recipe.train.shards > 1,
        "train.shards: each member of a repeat trains in one process, so they change nothing; set train.shards=1",
    ),
    (
        "FSDP with shards of the batch",
        lambda run: run.strategy == "fsdp" and run.recipe.train.shards > 1,
        "train.shards: their gradients are summed whole, and fsdp shards them; use strategy=ddp, or train.shards=1",
    ),
    (
        "workers that do not divide the shards of the batch",
        lambda run: run.recipe.train.shards > 1 and not _divide(run.workers, run.recipe.train),
        "workers: every number of workers that there may be must divide train.shards; use workers=N with such an N",
    ),
    (
        "privacy on several workers",
        lambda run: run.recipe.privacy is not None and run.repeat is None and run.workers not in (0, 1),
        "privacy: noise must be added once for all workers, which they do not yet agree on; use workers=0",
    ),
    (
        "privacy with shards of the batch",
        lambda run: run.recipe.privacy is not None and run.recipe.train.shards > 1,
        "train.shards: with privacy a run stays in one process, so they change nothing; set train.shards=1",
    ),
    (
        "an address without workers",
        lambda run: run.address is not None and run.workers == 0,
        "address: workers is 0, so the run stays in this process; set workers=N to train on that cluster",
    ),
)


def check_recipe(recipe: Recipe) -> None:
    """Raises ConfigError for the first row of `RECIPE_ROWS` that applies."""
    for _, applies, message in RECIPE_ROWS:
        if applies(recipe):
            raise ConfigError(message)


def check(run: TrainRun) -> None:
    """Raises ConfigError for the first row that applies, of the recipe or of the run."""
    check_recipe(run.recipe)
    for _, applies, message in ROWS:
        if applies(run):
            raise ConfigError(message)
