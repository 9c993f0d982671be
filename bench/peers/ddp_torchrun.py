"""Bare torch.distributed data-parallel training (gloo) of the byte GPT, started by torchrun.

python ddp_torchrun.py                 2 processes x 1 thread
python ddp_torchrun.py --workers 1     one process, no process group: what the model alone can do
"""

import argparse
import os
import subprocess
import sys
import time


def worker(a):
    import byte_gpt
    import torch
    import torch.distributed as dist
    from bench_json import emit

    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    model = byte_gpt.GPT()
    if world > 1:
        dist.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    marks = {}
    losses, seconds = byte_gpt.train(model, rank, a.warm, a.steps, lambda: marks.update(first=time.time()))
    mean = torch.tensor([losses[0], losses[-1]])
    if world > 1:
        dist.all_reduce(mean)
        dist.destroy_process_group()
    if rank == 0:
        emit(
            "ddp_torchrun",
            ("torch",),
            workers=world,
            threads_per_worker=1,
            backend="gloo" if world > 1 else None,
            warm_up_steps=a.warm,
            steps=a.steps,
            seconds=seconds,
            steps_per_s=a.steps / seconds,
            tokens_per_s=a.steps / seconds * world * byte_gpt.BATCH * byte_gpt.LENGTH,
            seconds_start_to_first_step=marks["first"] - float(os.environ["BASELINE_START"]),
            first_loss=mean[0].item() / world,
            last_loss=mean[1].item() / world,
        )


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--warm", type=int, default=10)
    p.add_argument("--steps", type=int, default=50)
    a = p.parse_args()
    if "BASELINE_START" in os.environ:
        return worker(a)
    environment = {**os.environ, "BASELINE_START": str(time.time()), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable]
    if a.workers > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={a.workers}"]
    return subprocess.run(launch + sys.argv, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
