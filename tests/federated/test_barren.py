"""A run in which no reply counts ends with an error that names the cause, whatever it is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from core.config import parse_run
from core.errors import ConfigError, WorkerError
from core.storage.checkpoint import Checkpointer
from federated.federation import Federation
from federated.flower.messages import ARRAYS
from federated.keeping import Keeping
from federated.run import FederateRun
from federated.server import Server, Watch
from tests.federated.reference import served
from tests.federated.test_engines import local
from tests.federated.test_remote import _identity, engine  # noqa: F401 - a fixture of the fake grid
from tests.federated.test_theirs import FakeGrid, Ran, flowers

CONFIG: dict[str, Any] = {
    "data": {"kind": "table", "path": "bundled:wine"},
    "model": {"kind": "mlp", "hidden": [4]},
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.0},
    "train": {"batch_size": 16},
    "clients": 6,
    "rounds": 2,
    "evaluate": {"every": 0, "held_out": 0.2},
    "backend": "loop",
}
SLOW = {"speed": {"kind": "constant", "value": 1.0}, "deadline_s": 0.5}
FEDBUFF = {"kind": "fedbuff", "buffer": 2, "concurrency": 3}


def federation(**changes: Any) -> Federation:
    return Federation.of(parse_run(FederateRun, {**CONFIG, **changes}))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"max_norm": 1e-9}, r"no reply has counted in 2 rounds; client \d in round 2: update has norm .* above 1e-09"),
        ({"devices": SLOW, "rounds": 5}, r"in 5 rounds; 30 replies were lost \(too late\); raise devices\.deadline_s"),
        ({"devices": {"dropout": 0.999}, "rounds": 1}, r"in 1 round; 6 .*\(dropped out\); lower devices\.dropout"),
        (
            {"strategy": {"kind": "median", "byzantine": 2}, "max_norm": 0.05, "rounds": 1},
            r"in 1 round; client \d .*; round 1: \d good replies, median needs 5; raise cohort, or lower strategy\.",
        ),
        ({"strategy": FEDBUFF, "devices": SLOW}, r"in 2 rounds; \d+ replies were lost \(too late\)"),
        ({"strategy": FEDBUFF, "max_norm": 1e-9}, r"in 2 rounds; client \d in round \d: update has norm"),
    ],
    ids=["faults", "deadline", "dropout", "too few for a rule", "asynchronous and late", "asynchronous and faulty"],
)
def test_a_run_in_which_nothing_ever_counted_ends_with_an_error_that_names_the_cause(
    changes: dict[str, Any], said: str
) -> None:
    found, records = federation(**changes), list[dict[str, Any]]()
    with pytest.raises(WorkerError, match=said):
        served(found, local(found), Watch(records.append))
    assert not [record for record in records if record.get("split") == "clients"]  # nothing is judged


def test_a_run_whose_first_rounds_are_lost_goes_on_until_a_reply_counts() -> None:
    found, records = federation(devices={"dropout": 0.9}, clients=2, rounds=12, seed=2), list[dict[str, Any]]()
    weights = served(found, local(found), Watch(records.append))
    counted = [record["clients"] for record in records if record.get("split") == "train"]
    assert counted[:4] == [0, 0, 0, 0] and sum(counted) > 0 and not torch.equal(weights, found.first)


def test_what_counted_before_a_run_was_stopped_counts_when_it_goes_on(tmp_path: Path) -> None:
    first, then = federation(), federation(rounds=3, max_norm=1e-9)
    with Checkpointer(tmp_path) as checkpoints:
        Server(first, local(first), checkpoints=checkpoints, keeping=Keeping()).serve()
    with Checkpointer(tmp_path) as checkpoints:
        ended = Server(then, local(then), checkpoints=checkpoints, keeping=Keeping()).serve()
    assert ended.ended == "done" and ended.rounds == 3  # no reply counts in round 3, but the model is trained


def test_a_run_of_flowers_own_strategy_in_which_nothing_ever_counted_ends_with_an_error(tmp_path: Path) -> None:
    found = federation(strategy=flowers("FedAvg"))

    def spoil(message: Any, reply: Any) -> list[Any]:
        reply.content.pop(ARRAYS, None)
        return [reply]

    with pytest.raises(WorkerError, match=r"no reply has counted in 2 rounds; client 0 in round 2: record arrays"):
        Ran(found, tmp_path / "run", FakeGrid(found, spoil))


# --- attackers that are alone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [{"kind": "alie"}, {"kind": "inner_product", "epsilon": 5.0}])
def test_colluding_attackers_without_an_honest_client_forge_from_their_own_updates(attack: dict[str, Any]) -> None:
    honest = federation(cohort=2, rounds=1)
    asked = [job.client for plan in honest.schedule.plans() for job in plan.jobs]
    found, records = federation(cohort=2, rounds=1, attack={**attack, "clients": asked}), list[dict[str, Any]]()
    forged, trained = served(found, local(found), Watch(records.append)), served(honest, local(honest))
    assert not torch.allclose(forged, trained, atol=1e-3)
    said = [record["message"] for record in records if record.get("event") == "warning"]
    assert said == ["round 1: no honest client has replied, only attackers; they forge from their own updates"]


def test_colluding_attackers_are_refused_where_all_clients_attack() -> None:
    for share in ({"share": 1.0}, {"clients": list(range(6))}):
        with pytest.raises(ConfigError, match=r"attack: all 6 clients attack, .*; leave some, by attack\.share"):
            federation(attack={"kind": "alie", **share})
