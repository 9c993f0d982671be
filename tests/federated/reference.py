"""The plain federated loop that every engine is held to: one client after the other, with autograd and nothing else.

It shares with the engines only the strategies' formulas, which have tests of their own, and the clients' batches.
"""

from dataclasses import replace

import torch
from torch import Tensor

from core.randomness import seed_of
from core.recipe import Recipe
from federated.exchange import Order, Pull, Total, Update, Vectors
from federated.federation import Federation
from federated.server import Server, Watch
from federated.site import training_only


def local_training(
    federation: Federation, start: Tensor, order: Order, client: int, pull: Pull | None
) -> tuple[Tensor, float, int]:
    """Plain SGD, written out: new weights [D], the mean loss, the number of steps."""
    run, frame = federation.run, federation.frame
    data = training_only(federation.clients.data(client, seed_of(run.recipe.seed, "client", client, order.round)))
    shard = data.shard()
    steps = run.local_steps or max(1, round(run.local_epochs * shard.steps_per_epoch(run.recipe.train)))
    task = run.recipe.build(federation.clients.spec).train()
    frame.put(task, start)
    lr = run.recipe.optimizer.lr * run.recipe.schedule.factor(order.round - 1, run.rounds)
    losses = []
    for step in range(steps):
        batch = shard.batch(run.recipe.train, step)
        each, weights = task(batch)
        loss = (each * batch["weight"]).sum() / (weights * batch["weight"]).sum()
        named = [(place.name, task.get_parameter(place.name)) for place in frame.layout.places]
        gradients = torch.autograd.grad(loss, [p for _, p in named])
        with torch.no_grad():
            for (_, p), gradient, place in zip(named, gradients, frame.layout.places, strict=True):
                here = slice(place.start, place.end)
                if pull is not None and pull.strength:
                    gradient = gradient + pull.strength * (p - pull.anchor[here].view(p.shape))
                if pull is not None and pull.shift is not None:
                    gradient = gradient + pull.shift[here].view(p.shape)
                p -= lr * gradient
        losses.append(float(loss.detach()))
    return frame.vector(task), sum(losses) / len(losses), steps


def reference(federation: Federation) -> Tensor:
    """The weights [D] after all rounds."""
    run, frame, strategy = federation.run, federation.frame, federation.run.strategy
    weights, server = federation.first, strategy.begin(federation.first, frame)
    mine: dict[int, Vectors] = {}
    pending: dict[int, Total] = {}
    task = run.recipe.build(federation.clients.spec)
    kept = strategy.kept(frame, task) if hasattr(strategy, "kept") else None
    for plan in federation.schedule.plans():
        order = Order(plan.round, weights, strategy.extra(server))
        for job in plan.jobs:
            own = mine.get(job.client, {})
            start = weights if kept is None or "kept" not in own else torch.where(kept, own["kept"], weights)
            after, loss, steps = local_training(federation, start, order, job.client, strategy.pull(order, own, frame))
            delta = after - start
            personal = strategy.personal(order, own)
            more = {}
            if personal is not None:
                more = {"personal": local_training(federation, personal.start, order, job.client, personal.pull)[0]}
            if kept is not None:
                more, delta = {"kept": torch.where(kept, after, 0.0)}, torch.where(kept, 0.0, delta)
            before = mean_loss(federation, weights, job.client, order.round) if strategy.measures_before else None
            examples = int(federation.clients.sizes[job.client])
            lr = run.recipe.optimizer.lr * run.recipe.schedule.factor(plan.round - 1, run.rounds)
            reply, keeps = strategy.reply(
                Update(job.client, delta, examples, steps, loss, lr, before), order, own, frame
            )
            mine[job.client] = {**keeps, **more}
            discounted = replace(reply, weight=reply.weight * strategy.discount(job.counts_in - plan.round))
            pending.setdefault(job.counts_in, Total()).add(discounted)
        total = pending.pop(plan.round, Total())
        if total.count:
            weights, server = strategy.step(weights, server, total, len(federation.clients))
    return weights


def mean_loss(federation: Federation, weights: Tensor, client: int, round: int) -> float:
    """Of a client's training examples."""
    recipe: Recipe = federation.run.recipe
    task = recipe.build(federation.clients.spec).eval()
    federation.frame.put(task, weights)
    data = federation.clients.data(client, seed_of(recipe.seed, "client", client, round))
    inputs, targets = data.splits["train"].take(data.splits["train"].addresses(0, None))
    with torch.no_grad():
        each, _ = task({"inputs": inputs, "targets": targets, "weight": torch.ones(len(inputs))})
    return float(each.mean())


def served(federation: Federation, engine: object, watch: Watch | None = None) -> Tensor:
    """The weights [D] that the server comes to."""
    return Server(federation, engine, watch).serve().weights
