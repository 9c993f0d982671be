"""Local steps a second of `fit` beside a bare hand-written loop with the same network, data and optimizer; and what it
costs to add up gradients in one order for 2 or 4 workers (`train.shards`)."""

import time
from typing import Any

import torch
import torch.nn.functional as F

from bench.measure import alternate, emit
from core.config import override, parse
from core.data import load
from core.recipe import Recipe
from core.runtime import Runtime
from core.train import fit

DIGITS = {
    "data": {"kind": "image"},
    "model": {"kind": "cnn"},
    "optimizer": {"kind": "adamw"},
    "train": {"steps": 300, "batch_size": 64, "log_every": 50},
}
# 2.4 million parameters
GPT = {
    "data": {"kind": "text", "context": 128},
    "model": {"kind": "gpt", "layers": 3, "heads": 4, "width": 256},
    "optimizer": {"kind": "adamw"},
    "train": {"steps": 12, "batch_size": 16, "log_every": 2},
}
WARM = {"digits cnn": 50, "gpt": 2}  # steps before the clock starts; a multiple of log_every


def run() -> None:
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, mapping, rounds in (("digits cnn", DIGITS, 25), ("gpt", GPT, 5)):
            side = _Sides(parse(Recipe, mapping), WARM[name])
            figures = alternate(side.ours, side.bare, rounds)
            emit("local steps/s, fit over bare loop", work=name, threads=threads, parameters=side.parameters, **figures)
    torch.set_num_threads(1)  # as a worker has
    for name, mapping in (("digits cnn", DIGITS), ("gpt", GPT)):
        plain = _Sides(parse(Recipe, mapping), WARM[name])
        for shards in (2, 4):
            sharded = _Sides(override(plain.recipe, {"train.shards": shards}), WARM[name])
            figures = alternate(sharded.ours, plain.ours, 5)
            emit("local steps/s with shards over those without", work=name, threads=1, shards=shards, **figures)


class _Sides:
    def __init__(self, recipe: Recipe, warm: int) -> None:
        self.recipe, self.warm = recipe, warm
        self.data = load(recipe.data, recipe.goal.target, recipe.seed)
        self.shard = self.data.shard(0, 1)
        self.parameters = sum(p.numel() for p in recipe.build(self.data.spec).parameters())

    def ours(self) -> float:
        times: dict[int, float] = {}

        def report(record: dict[str, Any]) -> None:
            if record.get("split") == "train":  # not the evaluation at the end
                times[record["step"]] = time.perf_counter()

        fit(self.recipe, self.shard, runtime=Runtime(report=report))
        steps = self.recipe.train.steps
        return (steps - self.warm) / (times[steps] - times[self.warm])

    def bare(self) -> float:
        task = self.recipe.build(self.data.spec)
        network = task.network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
        batches = [self.shard.batch(self.recipe.train, step) for step in range(self.recipe.train.steps)]
        x, y = torch.cat([b["inputs"] for b in batches[:20]]), torch.cat([b["targets"] for b in batches[:20]])
        size, order, begin = self.recipe.train.batch_size, torch.randperm(len(x)), 0.0
        for step in range(self.recipe.train.steps):
            if step == self.warm:
                begin = time.perf_counter()
            start = step * size % (len(x) - size + 1)
            rows = order[start : start + size]
            optimizer.zero_grad()
            outputs = network(x[rows])
            loss = F.cross_entropy(outputs.view(-1, outputs.shape[-1]), y[rows].view(-1))
            loss.backward()
            optimizer.step()
        return (self.recipe.train.steps - self.warm) / (time.perf_counter() - begin)
