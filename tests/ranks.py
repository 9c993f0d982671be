"""Runs a function on several real processes joined by gloo, without Ray: what a cluster does, in a few seconds."""

import gc
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

multiprocessing.set_forkserver_preload(["core.train", "tests.ranks"])  # imported once, not by each process


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """[function(rank, world, *arguments) for each rank], each in its own process of one group."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_enter, (world, Path(folder), function, arguments), world, start_method="forkserver")
        # written a moment ago by our own processes
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _enter(rank: int, world: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        torch.save(function(rank, world, *arguments), folder / f"{rank}.pt")
    finally:
        gc.collect()  # DDP's reducers hold the group: its threads must end before the interpreter does
        dist.destroy_process_group()
    os._exit(0)  # the result is saved; at the interpreter's end a thread of gloo has aborted it now and then
