"""`hanse federate simulate|partition|trees|statistics`: clients that keep their data, here, on Ray, or on a real Flower
deployment."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from core.config import parse, read_overrides
from core.optim import SGD
from federated.partition import IID
from federated.run import FederateRun
from federated.strategies import FedAvg
from hanse import federate
from hanse.commands.train import again, headline, reference, resumable
from hanse.console import Console, JsonConsole
from hanse.format import described, duration
from hanse.interrupt import INTERRUPTED
from hanse.output import output
from hanse.workers import place_of


def run(file: str, words: Sequence[str], console: Console) -> int:
    """Runs the rounds, and says how it went and what to type next."""
    overrides = read_overrides(words)
    wanted = federate.parse_federate(file, overrides)
    console.header(f"hanse federate simulate  {wanted.recipe.name}", _header(wanted))
    goes_on = wanted.strategy.kind != "flower"
    with resumable("hanse federate simulate", file, words) if goes_on else nullcontext():
        path, summary = federate.simulate(wanted, console)
    if summary["ended"] == "stopped":
        command = again("hanse federate simulate", file, words, path if goes_on else None)
        shown = summary if isinstance(console, JsonConsole) else {"stopped after round": summary["rounds"]}
        console.end(path, shown, [command])
        return INTERRUPTED
    console.close()
    console.say(f"report  {path / 'report.html'}")
    name = reference(path)
    console.end(path, _shown(summary, console), [f"hanse evaluate {name}", f"hanse runs show {name}"])
    return 0


def partition(file: str, words: Sequence[str], force: bool, console: Console) -> int:
    """Shows which client has how many examples of which label; draws it too, into a file where `out=` names one."""
    from federated.federation import deal
    from federated.partition.picture import counts, svg_picture, text_picture
    from hanse.federate_trees import parse_any

    overrides = read_overrides(words)
    out = output(overrides.pop("out", None), (".svg",), force, [file, overrides.get("data.path")])
    wanted = parse_any(file, overrides)
    dealt, data = deal(wanted) if isinstance(wanted, FederateRun) else wanted.deal()
    if isinstance(console, JsonConsole):
        for client, row in enumerate(counts(dealt, data).tolist()):
            console.event("client", client=client, examples=int(dealt.sizes[client]), counts=row)
    else:
        console.say(*text_picture(dealt, data).splitlines())
    drawn = out.write(svg_picture(dealt, data)) if out else None
    sizes = dealt.sizes
    said = {"clients": len(dealt), "smallest": int(sizes.min()), "largest": int(sizes.max())}
    verb = "hanse federate simulate" if isinstance(wanted, FederateRun) else "hanse federate trees"
    command = " ".join([verb, file, *(shlex.quote(w) for w in words if not w.startswith("out="))])
    console.end(None, said, [command], drawn)
    return 0


def trees(file: str, words: Sequence[str], console: Console) -> int:
    """Grows trees across clients, and says how good they are."""
    from hanse import federate_trees

    wanted = federate_trees.parse_trees(file, read_overrides(words))
    grown, of = wanted.trees, f"{wanted.data.kind} {wanted.data.path}"
    fields = {
        "trees": f"{grown.mode}, {grown.local_trees} a turn, eta {grown.eta:g}, depth {grown.max_depth}",
        "data": of,
        "clients": wanted.clients or "one of each value",
        "partition": described(wanted.partition, IID()),
        "rounds": grown.rounds,
        "engine": place_of(wanted.workers, wanted.address) if wanted.engine == "pool" else "this process",
        "seed": wanted.seed,
    }
    console.header(f"hanse federate trees  {wanted.name}", fields)
    path, summary = federate_trees.grow(wanted, console)
    console.close()
    is_whole = summary["ended"] == "done"
    said: Mapping[str, Any] = {"stopped after round": summary["rounds"]}
    if is_whole:
        console.say(f"report  {path / 'report.html'}")
        splits = {name: headline(one) for name, one in summary["evaluation"].items()}
        if summary["split"]:
            splits[summary["split"]] = headline(summary)
        said = {**splits, "wall_s": summary["wall_s"]}
    console.end(path, summary if isinstance(console, JsonConsole) else said, [f"hanse runs show {reference(path)}"])
    return 0 if is_whole else INTERRUPTED


def statistics(file: str, words: Sequence[str], console: Console) -> int:
    """Describes the columns of a table that lies with the clients of any federation's file."""
    from hanse.federate_statistics import Wanted, clients_of, described

    overrides = read_overrides(words)
    own = {name: overrides.pop(name) for name in ("quantiles",) if name in overrides}
    wanted = parse(Wanted, own)
    clients, policy = clients_of(file, overrides)
    columns, labels, withheld = described(clients, policy, wanted)
    console.rows("column", columns)
    console.rows("label", labels)
    if withheld:
        console.event("withheld", message=f"{', '.join(withheld)}; the section `statistics` says what sites tell")
    said = {"clients": len(clients), "rows": sum(data.sizes["train"] for data in clients), "columns": len(columns)}
    others = [shlex.quote(word) for word in words if not word.startswith("quantiles=")]
    console.end(None, said, [" ".join(["hanse federate partition", file, *others])])
    return 0


def _header(run: FederateRun) -> dict[str, object]:
    recipe = run.recipe
    where = {
        "inproc": "this process",
        "pool": place_of(run.workers, run.address),
        "flower": "a Flower deployment on this machine",
    }
    local = f"{run.local_steps} steps" if run.local_steps else f"{run.local_epochs:g} epochs"
    transforms = ", ".join(transform.kind for transform in run.transforms)
    return {
        "model": recipe.model.kind,
        "data": f"{recipe.data.kind} {recipe.data.path}",
        "clients": f"{run.clients or 'one of each value'}, {run.cohort or 'all'} a round",
        "partition": described(run.partition, IID()),
        "strategy": described(run.strategy, FedAvg()),
        "local work": f"{local} of batch {recipe.train.batch_size}, {described(recipe.optimizer, SGD())}",
        "rounds": run.rounds,
        "engine": where[run.engine],
        "seed": recipe.seed,
        **({"transforms": transforms} if transforms else {}),
        **({"attack": run.attack.kind} if run.attack else {}),
    }


def _shown(summary: Mapping[str, Any], console: Console) -> Mapping[str, Any]:
    """All of it for programs; for people the headlines, and how the clients fare."""
    if isinstance(console, JsonConsole):
        return summary
    shown: dict[str, Any] = {str(summary["split"]): headline(summary)} if summary["split"] else {}
    for name in ("clients", "personal"):
        found = summary["evaluation"].get(name)
        if found:
            metric = next((m for m in ("accuracy", "r2", "loss") if m in found["spread"]), "loss")
            one = found["spread"][metric]
            shown[name] = {metric: found["metrics"][metric], f"worst {metric}": one["worst"]}
    shown["parameters"] = summary["parameters"]
    if summary["simulated_s"]:
        shown["simulated"] = duration(summary["simulated_s"])
    return {**shown, "wall_s": summary["wall_s"]}
