"""Five folds with four seeds of the digits CNN as one run, here and on two workers, beside 20 fits in a row."""

import tempfile
import time
from pathlib import Path

import torch

import hanse
from bench.measure import alternate, emit
from core.config import override, parse, parse_run, read
from core.data import load
from core.ensemble.repeat import Repeat, members
from core.ensemble.train import summaries
from core.execute import score
from core.pool import ProcessPool, WorkerPool
from core.recipe import Recipe, TrainRun
from core.runtime import LOCAL
from core.storage.store import RunDirectory
from core.train import fit
from hanse.repeat import Watch, conclude, spread

CONFIG = Path(__file__).parents[1] / "configs" / "train" / "digits.yaml"
REPEAT = Repeat(folds=5, seeds=4)


def run() -> None:
    for threads in (1, 2):
        torch.set_num_threads(threads)
        figures = alternate(lambda: 1 / _one_run(0), lambda: 1 / _fits(), 2)
        emit("5 folds x 4 seeds in this process, over 20 bare fits in a row", threads=threads, **figures)
    torch.set_num_threads(1)
    figures = alternate(lambda: 1 / _one_run(0), lambda: 1 / _runs(), 2)
    emit("5 folds x 4 seeds in this process, over 20 runs in a row", threads=1, **figures)
    figures = alternate(lambda: 1 / _one_run(2), lambda: 1 / _runs(), 2)
    emit("5 folds x 4 seeds over 2 workers, their start included, over 20 runs in a row", threads=1, **figures)
    with ProcessPool(2) as pool:
        _over(pool)  # the workers' imports
        figures = alternate(lambda: 1 / _over(pool), lambda: 1 / _fits(), 2)
    emit("5 folds x 4 seeds over 2 workers that were there before, over 20 bare fits in a row", threads=1, **figures)


def _one_run(workers: int) -> float:
    """Seconds of the whole run: data, training, models, ensemble, report."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = {"repeat": {"folds": REPEAT.folds, "seeds": REPEAT.seeds}, "workers": workers}
        began = time.perf_counter()
        hanse.train(CONFIG, {**overrides, "run_dir": f"{folder}/run"}, quiet=True)
        return time.perf_counter() - began


def _over(pool: WorkerPool) -> float:
    """Seconds of training and concluding over workers that run already."""
    mapping = {"name": "digits", **read(CONFIG), "repeat": {"folds": REPEAT.folds, "seeds": REPEAT.seeds}, "workers": 2}
    run = parse_run(TrainRun, mapping)
    with tempfile.TemporaryDirectory() as folder, RunDirectory.create(Path(folder) / "run") as directory:
        began = time.perf_counter()
        spread(pool, run, directory, members(run.recipe, REPEAT), Watch(lambda record: None, lambda: False))
        conclude(REPEAT, directory, list(summaries(directory).values()))
        return time.perf_counter() - began


def _runs() -> float:
    """Seconds of one ordinary run for each member, in this process."""
    recipe = parse(Recipe, {"name": "digits", **read(CONFIG)})
    began = time.perf_counter()
    for spec in members(recipe, REPEAT):
        with tempfile.TemporaryDirectory() as folder:
            hanse.train(CONFIG, {**spec.overrides, "run_dir": f"{folder}/run"}, quiet=True)
    return time.perf_counter() - began


def _fits() -> float:
    """Seconds of loading, training and scoring each member by itself, writing nothing."""
    recipe = parse(Recipe, {"name": "digits", **read(CONFIG)})
    began = time.perf_counter()
    for spec in members(recipe, REPEAT):
        own = override(recipe, spec.overrides)
        data = load(own.data, own.goal.target, own.seed)
        score(own, data, fit(own, data.shard()), LOCAL)
    return time.perf_counter() - began
