"""The same training by stock Ray Train (V2): TorchTrainer, gloo, prepare_model, 2 workers of 1 CPU.

python ddp_ray_train.py
"""

import time

START = time.time()

import argparse
import os
import sys
import tempfile

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.train
import ray.train.torch
from bench_json import emit


def loop(config):
    import byte_gpt
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    context = ray.train.get_context()
    model = ray.train.torch.prepare_model(byte_gpt.GPT())
    marks = {}
    losses, seconds = byte_gpt.train(
        model, context.get_world_rank(), config["warm"], config["steps"], lambda: marks.update(first=time.time())
    )
    mean = torch.tensor([losses[0], losses[-1]])
    if context.get_world_size() > 1:
        dist.all_reduce(mean)
    mean /= context.get_world_size()
    return {
        "seconds": seconds,
        "first": marks["first"],
        "losses": mean.tolist(),
        "wrapped": type(model).__name__,
        "tokens": byte_gpt.BATCH * byte_gpt.LENGTH,
    }


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--warm", type=int, default=10)
    p.add_argument("--steps", type=int, default=50)
    a = p.parse_args()
    ray.init(num_cpus=a.workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ready = time.time()
    with tempfile.TemporaryDirectory() as storage:
        result = ray.train.torch.TorchTrainer(
            loop,
            train_loop_config={"warm": a.warm, "steps": a.steps},
            scaling_config=ray.train.ScalingConfig(num_workers=a.workers, resources_per_worker={"CPU": 1}),
            torch_config=ray.train.torch.TorchConfig(backend="gloo"),
            run_config=ray.train.RunConfig(name="baseline", storage_path=storage),
        ).fit()
        finished = time.time()
    m = result.return_value
    emit(
        "ddp_ray_train",
        ("ray", "torch"),
        workers=a.workers,
        threads_per_worker=1,
        backend="gloo",
        model_wrapper=m["wrapped"],
        warm_up_steps=a.warm,
        steps=a.steps,
        seconds=m["seconds"],
        steps_per_s=a.steps / m["seconds"],
        tokens_per_s=a.steps / m["seconds"] * a.workers * m["tokens"],
        seconds_start_to_first_step=m["first"] - START,
        of_which_ray_start=ready - START,
        seconds_whole_program=finished - START,
        first_loss=m["losses"][0],
        last_loss=m["losses"][1],
    )


if __name__ == "__main__":
    sys.exit(main())
