"""How long a checkpoint of a 100 MB model blocks the training loop, as a share of the time that writing it takes."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from bench.measure import emit
from core.storage.checkpoint import Checkpointer, Snapshot

ROUNDS = 7


def run() -> None:
    model = {f"layer.{i}.weight": torch.randn(1024, 1280) for i in range(20)}  # 105 MB in fp32
    state = {f"{name}/{key}": torch.randn_like(t) for name, t in model.items() for key in ("exp_avg", "exp_avg_sq")}
    blocked, written = [], []
    with tempfile.TemporaryDirectory() as folder, Checkpointer(Path(folder)) as checkpoints:
        for step in range(ROUNDS + 1):
            began = time.perf_counter()
            checkpoints.save(Snapshot(step, {"model": model, "optimizer": state}))
            returned = time.perf_counter()
            checkpoints.wait()
            if step:  # the first one also makes the staging buffers
                blocked.append(returned - began)
                written.append(time.perf_counter() - began)
    size = sum(t.numel() * 4 for t in (model | state).values())
    share = statistics.median(b / w for b, w in zip(blocked, written, strict=True))
    emit(
        "checkpoint, blocked share of the write",
        megabytes=size / 1e6,
        blocked_s=statistics.median(blocked),
        written_s=statistics.median(written),
        share=share,
        rounds=ROUNDS,
    )
