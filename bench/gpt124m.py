"""On a GPU: a GPT of 124M parameters, T 1024, bf16 and compile: tokens/s, MFU and peak memory beside a bare loop."""

import time
from typing import Any

import torch
import torch.nn.functional as F

from bench.measure import alternate, emit
from core.config import parse
from core.data import load
from core.estimate import peak_flops, step_flops
from core.recipe import Recipe
from core.runtime import Runtime
from core.train import fit

BATCH, CONTEXT, WARM, STEPS = 16, 1024, 20, 60
RECIPE = {
    "data": {
        "kind": "text",
        "path": "bundled:python",
        "context": CONTEXT,
        "tokenizer": {"kind": "bpe", "vocab": 50257},  # with GPT-2's vocabulary these sizes make 124M parameters
    },
    "model": {"kind": "gpt", "layers": 12, "heads": 12, "width": 768, "positions": "learned", "norm": "layernorm"},
    "train": {"steps": STEPS, "batch_size": BATCH, "log_every": 20, "precision": "bf16", "compile": True},
}


def run() -> None:
    if not torch.cuda.is_available():
        emit("gpt 124M on a GPU", skipped="this machine has no CUDA device")
        return
    recipe, device = parse(Recipe, RECIPE), torch.device("cuda", 0)
    data = load(recipe.data, recipe.goal.target, recipe.seed)
    shard, tokens, peaks = data.shard(0, 1), BATCH * CONTEXT, dict[str, int]()
    parameters = sum(p.numel() for p in recipe.build(data.spec).parameters())

    def ours() -> float:
        at: dict[int, float] = {}

        def report(record: dict[str, Any]) -> None:
            if record.get("split") == "train":
                at[record["step"]] = time.perf_counter()

        torch.cuda.reset_peak_memory_stats()
        fit(recipe, shard, runtime=Runtime(device=device, report=report))
        peaks["ours"] = torch.cuda.max_memory_allocated()
        return (STEPS - WARM) * tokens / (at[STEPS] - at[WARM])

    def bare() -> float:
        torch.cuda.reset_peak_memory_stats()
        network = recipe.build(data.spec).network.to(device)

        def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(network(inputs).flatten(0, 1).float(), targets.flatten())

        compiled = torch.compile(loss_of)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
        began = 0.0
        for step in range(STEPS):
            batch = {name: tensor.to(device) for name, tensor in shard.batch(recipe.train, step).items()}
            if step == WARM:
                torch.cuda.synchronize()
                began = time.perf_counter()
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = compiled(batch["inputs"], batch["targets"])
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()
        peaks["theirs"] = torch.cuda.max_memory_allocated()
        return (STEPS - WARM) * tokens / (time.perf_counter() - began)

    figures = alternate(ours, bare, 3)
    peak = peak_flops(device, "bf16")
    mfu = step_flops(recipe, data.spec) / tokens * figures["ours"] / peak if peak else None
    emit("gpt 124M, tokens/s, over bare loop", parameters=parameters, mfu=mfu, peak_bytes=peaks, **figures)
