"""What addressed dropout costs: one step of a GPT with dropout 0.1 in its place beside torch's own dropout."""

import time

import torch
from torch import nn

from bench.measure import alternate, emit
from core.config import parse
from core.data import load
from core.learner import start
from core.models.layers import Dropout
from core.recipe import Recipe
from core.train import train_step

RECIPE = {
    "data": {"kind": "text", "context": 128},
    "model": {"kind": "gpt", "layers": 3, "heads": 4, "width": 256, "dropout": 0.1},
    "train": {"steps": 10, "batch_size": 16},
}


class TorchDropout(nn.Dropout):
    """torch's dropout under our signature."""

    def forward(self, x: torch.Tensor, key: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x)


def run() -> None:
    recipe = parse(Recipe, RECIPE)
    data = load(recipe.data, recipe.goal.target, recipe.seed)
    batches = [data.shard(0, 1).batch(recipe.train, step) for step in range(recipe.train.steps)]

    def steps_per_s(replace: bool) -> float:
        learner = start(recipe, data.spec)
        if replace:
            for module in list(learner.task.modules()):
                for name, child in list(module.named_children()):
                    if isinstance(child, Dropout):
                        setattr(module, name, TorchDropout(child.p))
        train_step(learner, batches[0], recipe)
        began = time.perf_counter()
        for batch in batches[1:]:
            train_step(learner, batch, recipe)
        return (len(batches) - 1) / (time.perf_counter() - began)

    for threads in (1, 2):
        torch.set_num_threads(threads)
        figures = alternate(lambda: steps_per_s(False), lambda: steps_per_s(True), 5)
        emit("steps/s with addressed dropout, over torch's dropout", threads=threads, **figures)
