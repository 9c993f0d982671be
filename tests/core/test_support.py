"""Every row of the table of what goes with what is refused, with a message that names the key and the way out."""

from typing import Any

import pytest

from core.config import apply, parse_run
from core.errors import ConfigError
from core.recipe import TrainRun
from core.support import RECIPE_ROWS, ROWS, check

BASE = {"data": {"kind": "image"}, "model": {"kind": "mlp"}}
REFUSED: dict[str, dict[str, Any]] = {
    "batch norm on several workers": {"model": {"kind": "cnn", "norm": "batch"}, "workers": 2},
    "batch norm with accumulation": {"model": {"kind": "resnet", "norm": "batch"}, "train.accumulate": 2},
    "a repeat with FSDP": {"repeat.folds": 5, "strategy": "fsdp", "workers": 2},
    "a repeat with elastic workers": {"repeat.seeds": 4, "workers": {"min": 1, "max": 2}},
    "a repeat over folds of one fold": {"repeat.folds": 5, "data.split.folds": 3},
    "a repeat over bootstraps of one bootstrap": {"repeat.bootstraps": 5, "data.split.bootstrap": 0},
    "a repeat over bootstraps with learned tokens": {
        "repeat.bootstraps": 3,
        "data": {"kind": "text", "tokenizer": {"kind": "bpe"}},
        "model": {"kind": "gpt"},
    },
    "batch norm with privacy": {"model": {"kind": "cnn", "norm": "batch"}, "privacy.clip": 1.0},
    "privacy with mixup": {"data.augment.mixup": 0.2, "privacy.clip": 1.0},
    "privacy on several workers": {"privacy.clip": 1.0, "workers": 2},
    "privacy with shards of the batch": {"privacy.clip": 1.0, "train.shards": 2},
    "privacy in fp16": {"privacy.clip": 1.0, "train.precision": "fp16"},
    "privacy with compilation": {"privacy.clip": 1.0, "train.compile": True},
    "a repeat with shards of the batch": {"repeat.seeds": 3, "train.shards": 2},
    "FSDP with shards of the batch": {"workers": 2, "strategy": "fsdp", "train.shards": 2},
    "workers that do not divide the shards of the batch": {"workers": {"min": 2, "max": 4}, "train.shards": 4},
    "FSDP in one process": {"strategy": "fsdp"},
    "an address without workers": {"address": "127.0.0.1:6379"},
}


@pytest.mark.parametrize("row", [*RECIPE_ROWS, *ROWS], ids=lambda row: row[0])
def test_every_row_of_the_table_is_refused_by_its_example(row: tuple[str, Any, str]) -> None:
    name, _, message = row
    with pytest.raises(ConfigError) as caught:
        check(parse_run(TrainRun, apply(BASE, REFUSED[name])))
    assert str(caught.value) == message
    assert "; " in message, "it says how to fix it"


@pytest.mark.parametrize(
    "fine",
    [
        {},
        {"workers": 2},
        {"workers": 2, "strategy": "fsdp", "optimizer.kind": "muon"},
        {"workers": 2, "repeat.seeds": 3, "model": {"kind": "cnn", "norm": "batch"}},
        {"workers": 2, "repeat.seeds": 3, "privacy.clip": 1.0, "train.precision": "bf16"},
        {"workers": {"min": 1, "max": 2}, "train.shards": 8},
        {"train.shards": 4},
        {"repeat.seeds": 3, "data.split.folds": 3, "data.split.bootstrap": 0},
    ],
)
def test_what_no_row_names_is_allowed(fine: dict[str, Any]) -> None:
    check(parse_run(TrainRun, apply(BASE, fine)))
