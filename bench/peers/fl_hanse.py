"""Hanse on one of the workloads: the same clients, cohorts, first weights and local work as the peers'.

    python -m bench.peers.fl_hanse mlp --rounds 10 --check
    python -m bench.peers.fl_hanse femnist-cnn --workers 2

`--check` compares the final weights with the plain loop's; a model with dropout draws its masks in another way than
the peers and is checked on `cifar-cnn-nodrop`. `--workers 0` is this process.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])  # for workers

from workloads import MODELS, WORKLOADS, Workload, client_data, cohort, initial_model, report  # isort: skip

import argparse
import functools
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from core.data import Data, Preprocess, Spec, Table
from core.data.examples import Stacked
from core.models.layers import Dropout
from core.optim import SGD
from core.pool import LocalPool, ProcessPool
from core.recipe import Recipe, Training
from federated.clock.schedule import Job, Plan
from federated.engine import PoolEngine
from federated.federation import Federation
from federated.run import Evaluation, FederateRun
from federated.server import Server, Watch

CLASSES = tuple(map(str, range(10)))


@dataclass(frozen=True)
class PeerModel:
    """A model of the workloads, with Hanse's dropout."""

    kind: str = "peer"
    name: str = "lr"

    def build(self, spec):
        return Network(MODELS[self.name]())


class Network(nn.Sequential):
    def __init__(self, model):
        super().__init__(*(Dropout(m.p) if isinstance(m, nn.Dropout) else m for m in model))

    def forward(self, inputs, key=None):
        for layer in self:
            inputs = layer(inputs, key) if isinstance(layer, Dropout) else layer(inputs)
        return inputs


@dataclass
class InOrder(Stacked):
    """Examples that are never shuffled."""

    def addresses(self, seed, epoch):
        return torch.arange(len(self.inputs))


@dataclass(frozen=True)
class WorkloadClients:
    w: Workload
    preprocess = None
    fingerprint = ""

    def __len__(self):
        return self.w.registered

    @property
    def spec(self):
        return Spec("image" if len(self.w.shape) == 3 else "table", self.w.shape, 10, "class", CLASSES)

    @functools.cached_property
    def sizes(self):
        w = self.w
        if w.ragged:
            return torch.tensor([len(client_data(w, client)[1]) for client in range(w.registered)])
        return torch.full((w.registered,), w.samples)

    @functools.cached_property
    def held_out_sizes(self):
        return torch.zeros(self.w.registered, dtype=torch.long)

    @functools.cached_property
    def nothing(self):
        return Stacked(torch.zeros(0, *self.w.shape), torch.zeros(0, dtype=torch.long))

    def data(self, client, seed):
        splits = {"train": InOrder(*client_data(self.w, client)), "validation": self.nothing, "test": self.nothing}
        return Data(Preprocess(self.spec, None), "", splits, seed)


@dataclass(frozen=True)
class Cohorts:
    """The workload's own cohorts in place of a schedule's."""

    w: Workload

    def plans(self, start=1):
        for r in range(start, self.w.rounds + 1):
            jobs = tuple(Job(client, r, r, 0.0, 0.0) for client in cohort(self.w, r))
            yield Plan(r, jobs, (), 0.0, 0.0, len(jobs))


def federation_of(w, backend="auto", workers=2):
    training = Training(batch_size=w.batch)
    sgd = SGD(lr=w.lr, momentum=0.0)
    recipe = Recipe(Table(), PeerModel(name=w.model), name=w.name, seed=w.seed, optimizer=sgd, train=training)
    run = FederateRun(
        recipe,
        clients=w.registered,
        rounds=w.rounds,
        cohort=w.cohort,
        local_epochs=w.epochs,
        backend=backend,
        workers=workers,
        evaluate=Evaluation(every=0, held_out=0.0),
        checkpoint_every=0,
    )
    federation = Federation(run, WorkloadClients(w), weights=dict(initial_model(w).state_dict()))
    federation.__dict__["schedule"] = Cohorts(w)
    return federation


@contextmanager
def engine_of(federation, workers, threads):
    if workers:
        with ProcessPool(workers, cpus_per_worker=threads, preload=("federated.site", "workloads")) as pool:
            yield PoolEngine(pool, federation.setting)
    else:
        torch.set_num_threads(threads)
        with LocalPool() as pool:
            yield PoolEngine(pool, federation.setting)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workload", choices=WORKLOADS)
    for name in ("registered", "cohort", "rounds", "seed"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    given = {k: getattr(args, k) for k in ("registered", "cohort", "rounds", "seed")}
    w = replace(WORKLOADS[args.workload], **{k: v for k, v in given.items() if v is not None})
    torch.set_num_threads(args.threads)
    federation, round_ends = federation_of(w, args.backend, args.workers or 1), []

    def note(record):
        if record.get("split") == "train":
            round_ends.append(time.perf_counter())

    with engine_of(federation, args.workers, args.threads) as engine:
        served = Server(federation, engine, Watch(note)).serve()
    final = federation.frame.named(served.weights)
    executor = federation.setting.executor
    report("hanse", w, args, round_ends, final, workers=args.workers, executor=executor)


if __name__ == "__main__":
    from bench.peers.fl_hanse import main as imported  # workers find its classes by this name

    imported()
