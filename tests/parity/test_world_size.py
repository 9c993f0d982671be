"""One, two and four workers give the same loss curve and final weights: every family of the zoo, ragged last batches,
accumulation, augmentation and dropout included; bit for bit with `train.shards`. Real processes over gloo;
`tests/cluster` does the same through Ray."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.config import apply, parse
from core.data import load
from core.errors import WorkerError
from core.learner import gather, start
from core.recipe import Recipe
from core.runtime import Record, Runtime
from core.storage.checkpoint import Checkpointer, load_latest
from core.train import fit
from tests.ranks import on_ranks

TOLERANCE = 1e-5  # relative, in fp32: sums over a batch are taken in another order

# 1437 training digits in batches of 202 leave a last batch of 23: less than four full shares, and not divisible by two
IMAGES = {"data": {"kind": "image"}, "train": {"steps": 10, "batch_size": 202, "log_every": 1}}
AUGMENTED = {"data.augment": {"crop": 1, "noise": 0.1, "mixup": 0.2, "cutout": 2}}
TEXT = {
    "data": {"kind": "text", "context": 32, "limit_bytes": 20000},
    "train": {"steps": 8, "batch_size": 10, "log_every": 1, "clip": 1.0},
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mlp": (IMAGES, {"model": {"kind": "mlp", "hidden": [32], "dropout": 0.2}}),
    "mlp accumulated": (IMAGES, {"model": {"kind": "mlp", "dropout": 0.2}, "train.accumulate": 3}),
    "cnn augmented": (IMAGES, {"model": {"kind": "cnn", "channels": [8, 8], "dropout": 0.2}, **AUGMENTED}),
    "resnet": (IMAGES, {"model": {"kind": "resnet", "width": 8, "depth": 1}, "train.steps": 4, **AUGMENTED}),
    "table": (
        {"data": {"kind": "table"}, "train": {"steps": 12, "batch_size": 100, "log_every": 1}},
        {"model": {"kind": "mlp"}, "optimizer": {"kind": "sgd"}},
    ),
    "lstm": (TEXT, {"model": {"kind": "recurrent", "cell": "lstm", "hidden": 32, "dropout": 0.1}}),
    "gru": (TEXT, {"model": {"kind": "recurrent", "cell": "gru", "hidden": 32}, "train.accumulate": 2}),
    "gpt": (TEXT, {"model": {"kind": "gpt", "layers": 2, "heads": 2, "width": 32, "dropout": 0.1}}),
    "gpt muon": (TEXT, {"model": {"kind": "gpt", "layers": 2, "heads": 2, "width": 32}, "optimizer.kind": "muon"}),
}


def _losses_to(losses: list[float]) -> Callable[[Record], None]:
    return lambda record: losses.append(record["loss"]) if "split" in record else None


def _recipe_of(case: str, shards: int) -> Recipe:
    """With shards also accumulated, and evaluated on the way."""
    base, changes = CASES[case]
    if shards > 1:
        changes = {**changes, "train.shards": shards, "train.evaluate_every": 4, "data.split.validation": 0.1}
        changes["train.accumulate"] = min(2, base["train"]["batch_size"] // shards)
    return parse(Recipe, apply(base, changes))


def train_all(
    rank: int, world: int, strategy: str = "ddp", shards: int = 1
) -> dict[str, tuple[list[float], dict[str, Tensor]]]:
    """Loss curve and final weights of every case."""
    results = {}
    for name in CASES:
        recipe = _recipe_of(name, shards)
        losses: list[float] = []
        runtime = Runtime(rank=rank, world=world, strategy=strategy, report=_losses_to(losses))
        data = load(recipe.data, recipe.goal.target, recipe.seed)
        task = fit(recipe, data.shard(rank, world), runtime=runtime).task
        results[name] = losses, {k: v.clone() for k, v in gather(task.network.state_dict()).items()}
    return results


@cache
def trained(world: int, strategy: str = "ddp", shards: int = 1) -> dict[str, tuple[list[float], dict[str, Tensor]]]:
    return on_ranks(world, train_all, strategy, shards)[0]


def relative_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest over the tensors of |a - b| / |a|, in the Euclidean norm; all but zero, a counts as 1e-3."""
    return max(((a[name] - b[name]).norm() / a[name].norm().clamp(min=1e-3)).item() for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("case", list(CASES))
def test_any_number_of_workers_gives_the_weights_of_one(case: str, world: int) -> None:
    losses, weights = trained(1)[case]
    split_losses, split_weights = trained(world)[case]
    assert split_losses == pytest.approx(losses, rel=TOLERANCE)
    assert relative_difference(weights, split_weights) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("case", list(CASES))
def test_with_shards_any_number_of_workers_gives_the_bits_of_one(case: str, world: int) -> None:
    losses, weights = trained(1, shards=4)[case]
    split_losses, split_weights = trained(world, shards=4)[case]
    assert split_losses == losses
    assert all(torch.equal(weights[name], split_weights[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_shards_change_the_order_of_the_sums_alone(case: str) -> None:
    _, weights = trained(1)[case]
    _, weights_in_shards = trained(1, shards=4)[case]
    assert relative_difference(weights, weights_in_shards) < TOLERANCE


@pytest.mark.parametrize("case", list(CASES))
def test_sharded_training_gives_the_weights_of_one_process(case: str) -> None:
    losses, weights = trained(1)[case]
    split_losses, split_weights = trained(2, "fsdp")[case]
    assert split_losses == pytest.approx(losses, rel=TOLERANCE)
    assert relative_difference(weights, split_weights) < TOLERANCE


def train_in_two_parts(rank: int, world: int, folder: str, strategy: str) -> dict[str, Tensor]:
    """Final weights of the first case, stopped after 4 steps and resumed."""
    base, changes = CASES["mlp"]
    recipe = parse(Recipe, apply(base, changes))
    data, seen = load(recipe.data, recipe.goal.target, recipe.seed), [0]
    for stop in (4, 1000):
        runtime = Runtime(
            rank=rank,
            world=world,
            strategy=strategy,
            report=lambda record: seen.append(record["step"]),
            should_stop=lambda stop=stop: seen[-1] >= stop,
        )
        with Checkpointer(Path(folder)) if rank == 0 else nullcontext() as checkpoints:
            task = fit(recipe, data.shard(rank, world), runtime=runtime, checkpoints=checkpoints).task
    return {k: v.clone() for k, v in gather(task.network.state_dict()).items()}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_workers_resume_to_the_bits_of_an_undisturbed_run(tmp_path: Path, strategy: str) -> None:
    resumed = on_ranks(2, train_in_two_parts, str(tmp_path), strategy)[0]
    _, undisturbed = trained(2, strategy)["mlp"]
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


def train_a_part(rank: int, world: int, folder: str, stop: int) -> dict[str, Tensor]:
    """Weights of the first case in four shards, after `stop` steps or at its end."""
    recipe, seen = _recipe_of("mlp", 4), [0]
    data = load(recipe.data, recipe.goal.target, recipe.seed)
    runtime = Runtime(
        rank=rank,
        world=world,
        report=lambda record: seen.append(record["step"]),
        should_stop=lambda: seen[-1] >= stop,
    )
    with Checkpointer(Path(folder)) if rank == 0 else nullcontext() as checkpoints:
        task = fit(recipe, data.shard(rank, world), runtime=runtime, checkpoints=checkpoints).task
    return {k: v.clone() for k, v in task.network.state_dict().items()}


def test_with_shards_a_run_goes_on_with_the_same_bits_on_other_workers(tmp_path: Path) -> None:
    stopped = on_ranks(1, train_a_part, str(tmp_path), 4)[0]
    resumed = on_ranks(4, train_a_part, str(tmp_path), 1000)
    _, undisturbed = trained(1, shards=4)["mlp"]
    assert not torch.equal(stopped["layers.0.weight"], undisturbed["layers.0.weight"])
    assert all(torch.equal(weights[name], undisturbed[name]) for weights in resumed for name in undisturbed)


def test_with_shards_all_ranks_begin_with_the_weights_of_the_first() -> None:
    first, second = on_ranks(2, begin_with_weights_of_its_own)
    assert torch.equal(first, second)


def begin_with_weights_of_its_own(rank: int, world: int) -> Tensor:
    """As where another processor draws other bits."""
    recipe = _recipe_of("mlp", 2)
    data = load(recipe.data, recipe.goal.target, recipe.seed)
    task = start(replace(recipe, seed=rank), data.spec, runtime=Runtime(rank=rank, world=world)).task
    return torch.cat([p.detach().flatten() for p in task.parameters()])


def diverge(rank: int, world: int, folder: str) -> str:
    """The error of a run that saves at every step, and looks at its loss at every tenth."""
    base, changes = CASES["mlp"]
    bad = {"optimizer.kind": "sgd", "optimizer.lr": 1e30, "train.log_every": 10, "train.checkpoint_every": 1}
    recipe = parse(Recipe, apply(base, changes | bad))
    data = load(recipe.data, recipe.goal.target, recipe.seed)
    with Checkpointer(Path(folder)) if rank == 0 else nullcontext() as checkpoints:
        try:
            fit(recipe, data.shard(rank, world), runtime=Runtime(rank=rank, world=world), checkpoints=checkpoints)
        except WorkerError as error:
            return str(error)
    return ""


def test_all_workers_refuse_to_save_weights_that_are_not_finite(tmp_path: Path) -> None:
    assert all("not finite" in said for said in on_ranks(2, diverge, str(tmp_path)))
    saved = load_latest(tmp_path).snapshot
    assert saved is None or all(torch.isfinite(t).all() for t in saved.tensors["model"].values())


def test_every_case_trains_at_all() -> None:
    for case, (losses, _) in trained(1).items():
        assert losses[-1] < losses[0], case
