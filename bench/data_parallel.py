"""Two gloo workers on the byte GPT of `bench/peers/byte_gpt.py`: steps a second beside bare torchrun, and the time from
start to the first step beside stock Ray Train."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.measure import alternate, emit

PEERS = Path(__file__).parent / "peers"
WARM, TIMED = 10, 50
RECIPE = """
name: byte-gpt
data: {kind: text, path: bundled:english, context: 128}
model: {kind: gpt, layers: 4, heads: 6, width: 192, positions: learned, norm: layernorm, activation: gelu, bias: true}
optimizer: {kind: adamw, lr: 3.0e-4}
train: {batch_size: 32, checkpoint_every: 0}
workers: 2
"""


def run() -> None:
    torchrun = alternate(lambda: _hanse(WARM, TIMED)["speed"], lambda: _peer("ddp_torchrun.py")["steps_per_s"], 3)
    emit("2 workers, steps/s, over bare torchrun", work="byte gpt", **torchrun)
    sharded = alternate(lambda: _hanse(WARM, TIMED, "train.shards=2")["speed"], lambda: _hanse(WARM, TIMED)["speed"], 3)
    emit("2 workers, steps/s with shards=2 over those without", work="byte gpt", **sharded)
    started = "seconds_start_to_first_step"
    first = alternate(lambda: _hanse(1, 1)["first"], lambda: _peer("ddp_ray_train.py", 1, 1)[started], 5)
    emit("2 workers, seconds from start to first step, over stock Ray Train", work="byte gpt", **first)


def _hanse(warm: int, timed: int, *words: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "gpt.yaml"
        config.write_text(RECIPE)
        command = [sys.executable, "-m", "hanse", "train", str(config), f"run_dir={folder}/run", "--json"]
        sizes = [f"train.steps={warm + timed}", f"train.log_every={warm}"]
        began = time.time()
        done = subprocess.run([*command, *sizes, *words], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        at = {r["step"]: r["time"] for r in map(json.loads, lines) if r["split"] == "train"}
        return {"speed": timed / (at[warm + timed] - at[warm]), "first": at[1] - began}


def _peer(program: str, warm: int = WARM, timed: int = TIMED) -> dict[str, Any]:
    command = [sys.executable, program, "--warm", str(warm), "--steps", str(timed)]
    done = subprocess.run(command, cwd=PEERS, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
