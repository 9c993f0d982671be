"""The data room: `load` reads a source, checks it, splits it and fits its preprocessing on the training split only.

data = load(Table(path="people.csv", target="income"), "class", seed=0)
batch = data.shard(rank=0, world=1).batch(train, step=37)
"""

from typing import Literal

from core.data.config import BPE, Augment, Byte, DataConfig, Image, Numbers, Split, Table, Text, TokenizerConfig
from core.data.examples import Data
from core.data.image import load_image, open_image
from core.data.preprocess import Preprocess, Trained
from core.data.shard import Batch, Shard
from core.data.spec import Spec
from core.data.table import load_table, open_table
from core.data.text import load_text, open_text
from core.data.tokenizer import Tokenizer
from core.errors import ConfigError, DataError, out_of_memory

__all__ = [
    "BPE",
    "Augment",
    "Batch",
    "Byte",
    "Data",
    "DataConfig",
    "Image",
    "Numbers",
    "Preprocess",
    "Shard",
    "Spec",
    "Split",
    "Table",
    "Text",
    "Tokenizer",
    "TokenizerConfig",
    "Trained",
    "load",
    "open_with",
]

ADVICE = "lower data.size, data.context or data.limit_bytes, or give it fewer examples"


def load(
    config: DataConfig, target: Literal["class", "real", "token"], seed: int = 0, trained: Trained | None = None
) -> Data:
    """Train, validation and test split of a source. The same config, files and seed give the same data anywhere.

    `trained`: nothing is fitted, the preprocessing is that of the model. Raises DataError if the files are not as they
    must be (for a trained model: as they were), ConfigError if `target` does not go with the kind of data.
    """
    if (target == "token") != isinstance(config, Text):
        raise ConfigError(f"objective.kind: {target} targets do not go with data.kind: {config.kind}")
    with out_of_memory("data", ADVICE):
        if isinstance(config, Text):
            return load_text(config, seed, trained)
        if isinstance(config, Table):
            return load_table(config, target, seed, trained)
        return load_image(config, target, seed, trained)


def open_with(preprocess: Preprocess, config: DataConfig, targets: bool = True) -> Data:
    """Another source, prepared for a trained model: all of it is the split `test`. Batches lack `targets` if it does,
    or if they are not wanted: then they are not even looked at.

    Raises DataError if its kind, columns, shape, labels or tokenizer are not those of the model.
    """
    if config.kind != preprocess.spec.kind:
        raise DataError(
            f"data.kind: {config.kind} does not match this model, which was trained on {preprocess.spec.kind}"
        )
    with out_of_memory("data", ADVICE):
        if isinstance(config, Text):
            return open_text(preprocess, config)
        if isinstance(config, Table):
            return open_table(preprocess, config, targets)
        return open_image(preprocess, config, targets)
