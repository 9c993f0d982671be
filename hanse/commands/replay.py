"""`hanse runs replay RUN --round R --client K`: one client's work of a federation's round, done again, exactly."""

import math

from core.errors import ConfigError
from core.storage.store import find_run, runs_root
from hanse.commands.train import reference as short
from hanse.console import Console


def run(reference: str, round: int, client: int, console: Console) -> int:
    """What the client answers now, beside what it answered then."""
    found = find_run(runs_root(), reference, lambda run: run.record.get("verb") == "federate")
    if found.record.get("verb") != "federate":
        raise ConfigError(f"{found.id}: is no federation; only the rounds of a federation can be replayed")
    from hanse.federate import replay

    now, then = replay(found.path, round, client)
    rows: list[dict[str, object]] = []
    for name in ("examples", "loss", "norm"):
        before = None if then is None else getattr(then, name)
        rows.append({"what": name, "now": repr(getattr(now, name)), "then": "-" if before is None else repr(before)})
    console.rows("replay", rows)
    if now.fault:
        console.event("client_failed", message=now.fault, **({"traceback": now.trace} if now.trace else {}))
    same = then is not None and (now.loss, now.norm, now.examples) == (then.loss, then.norm, then.examples)
    if now.fault and then is not None:
        same = math.isnan(now.norm) and then.norm is None
    verdict = "not recorded" if then is None else "the same to the last bit" if same else "not the same"
    said = {"client": client, "round": round, "replay": verdict}
    console.end(found.path, said, [f"hanse runs show {short(found.path)}"])
    return 0 if same or then is None else 1
