"""Many small fits at once: a population beside the plain loop, and what `auto` makes of the choice for each family."""

import dataclasses
import time
from typing import Any

import torch

from bench.measure import alternate, emit
from core.config import override, parse
from core.data import load
from core.population import Backend, Member, fit_all
from core.recipe import Recipe

ROUNDS = 4
TEXT = {"kind": "text", "context": 32, "limit_bytes": 40_000}
# 64 inputs, 64 hidden, 10 classes
MLP = {"data": {"kind": "image"}, "model": {"kind": "mlp", "hidden": [64]}, "train": {"steps": 200, "batch_size": 10}}
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "mlp": (MLP, 16),
    "cnn": (
        {
            "data": {"kind": "image"},
            "model": {"kind": "cnn", "channels": [8, 16], "hidden": 32},
            "train": {"steps": 150, "batch_size": 32},
        },
        8,
    ),
    "resnet": (
        {
            "data": {"kind": "image"},
            "model": {"kind": "resnet", "width": 8, "depth": 1},
            "train": {"steps": 100, "batch_size": 32},
        },
        8,
    ),
    "lstm": (
        {"data": TEXT, "model": {"kind": "recurrent", "hidden": 64}, "train": {"steps": 150, "batch_size": 16}},
        8,
    ),
    "gpt": (
        {
            "data": TEXT,
            "model": {"kind": "gpt", "layers": 2, "heads": 2, "width": 32},
            "train": {"steps": 100, "batch_size": 16},
        },
        8,
    ),
}


def run() -> None:
    torch.set_num_threads(1)
    group = members(MLP, 64)
    figures = alternate(lambda: _steps_per_s(group, "vmap"), lambda: _steps_per_s(group, "loop"), 5)
    emit("64 members of an MLP 64-64-10, batch 10: member steps/s together, over the loop", threads=1, **figures)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, (mapping, count) in FAMILIES.items():
            _auto(name, members(mapping, count), threads)


def members(mapping: dict[str, Any], count: int) -> list[Member]:
    """One member per seed, on the same data in orders of their own."""
    recipe = parse(Recipe, mapping)
    data = load(recipe.data, recipe.goal.target, recipe.seed)
    return [
        Member(f"seed-{i}", override(recipe, {"seed": i}), dataclasses.replace(data, seed=i).shard())
        for i in range(count)
    ]


def _auto(name: str, group: list[Member], threads: int) -> None:
    """`auto`, probes included, over the better of both."""
    rounds: dict[str, list[float]] = {"auto": [], "loop": [], "vmap": []}
    backends: tuple[Backend, ...] = ("auto", "loop", "vmap")
    for _ in range(ROUNDS):
        for backend in backends:
            rounds[backend].append(_steps_per_s(group, backend))
    speeds = {backend: sorted(values)[len(values) // 2] for backend, values in rounds.items()}
    ratios = sorted(a / max(b, c) for a, b, c in zip(*rounds.values(), strict=True))
    emit(
        "member steps/s with auto, over the better of loop and vmap",
        work=name,
        members=len(group),
        threads=threads,
        **speeds,
        ratio=ratios[len(ratios) // 2],
        ratio_min_max=[ratios[0], ratios[-1]],
        rounds=len(ratios),
    )


def _steps_per_s(group: list[Member], backend: Backend) -> float:
    began = time.perf_counter()
    fit_all(group, backend)
    return sum(member.recipe.train.steps for member in group) / (time.perf_counter() - began)
