"""Members that were stopped, or whose process died, go on where they were, to the bits of undisturbed ones."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from core.errors import DataError
from core.population import Member, Outcome, fit_all, spacing
from core.population.executor import chosen
from core.population.fit import buckets
from core.population.lockstep import Lockstep
from core.population.memory import members_at_once
from core.population.places import Places, clear, reached
from core.runtime import Runtime
from tests.core.population.cases import family, member, members, same


@pytest.fixture(autouse=True)
def _whatever_is_due_is_saved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spacing, "SECONDS", 0.0)


class Killed(BaseException):
    """As if the process ended here."""


class Work:
    """What is on the disk of a run: checkpoints, events, and which members have ended; and what became of those."""

    def __init__(self, path: Path, group: Sequence[Member], backend: Any = "vmap") -> None:
        self.path, self.group, self.backend = path, list(group), backend
        self.records: list[dict[str, Any]] = []
        self.outcomes: dict[str, Outcome] = {}

    def train(self, stop: int | None = None, kill: int | None = None, free_bytes: int | None = None) -> "Work":
        """Until all have ended; or, once a member has made so many steps, until it is stopped or killed."""
        at = 0

        def report(record: dict[str, Any]) -> None:
            nonlocal at
            self.records.append(record)
            at = record["step"] if record.get("split") == "train" else at
            if kill is not None and at >= kill:
                raise Killed

        def finished(outcome: Outcome) -> None:
            assert outcome.name not in self.outcomes, "it had ended before"
            if outcome.ended != "stopped":
                self.outcomes[outcome.name] = outcome

        runtime = Runtime(report=report, should_stop=lambda: stop is not None and at >= stop)
        places = Places(self.path, list(self.outcomes), chosen(self.events))
        self.records += places.read([m.name for m in self.group])
        needed = [m for m in self.group if m.name not in self.outcomes or m.name in places.rows]
        try:
            fit_all(needed, self.backend, runtime, free_bytes, finished, places)
        except Killed:
            assert kill is not None
        return self

    @property
    def events(self) -> list[dict[str, Any]]:
        return [record for record in self.records if "event" in record]

    def said(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.events if record["event"] == event]


def agree(work: Work, whole: Work) -> None:
    assert work.outcomes.keys() == whole.outcomes.keys() == {m.name for m in whole.group}
    for name, outcome in whole.outcomes.items():
        assert same(work.outcomes[name], outcome), name
        assert work.outcomes[name].require().progress == outcome.require().progress
    assert not list(work.path.iterdir()), "a place is there until its members have ended"


# The first members run out of patience, others keep their best weights of before they came to an end.
RAGGED = {"train__steps": 24, "train__evaluate_every": 2, "train__patience": 2, "train__keep": "best"}
RATES = [{"optimizer.lr": lr} for lr in (1.0, 0.3, 1e-3, 1e-2)]


def ragged(name: str = "mlp", every: int = 4, **changes: Any) -> list[Member]:
    base = family(name, **{**RAGGED, "train__checkpoint_every": every, "model__dropout": 0.2, **changes})
    return members(base, RATES)


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_members_killed_at_any_step_end_with_the_bits_of_undisturbed_ones(backend: str, tmp_path: Path) -> None:
    whole = Work(tmp_path / "whole", ragged(), backend).train()
    ends = [outcome.require().progress for outcome in whole.outcomes.values()]
    assert sorted(end.step for end in ends)[:2] == [10, 24], "one ends early, and not with a checkpoint, others do not"
    assert any(end.best_step != end.step for end in ends), "the best weights are not always the last"
    for kill in (1, 9, 11, 22):
        work = Work(tmp_path / str(kill), ragged(), backend).train(kill=kill).train(kill=23).train()
        agree(work, whole)


def test_a_member_that_ended_before_the_first_checkpoint_was_due_is_a_row_again(tmp_path: Path) -> None:
    whole = Work(tmp_path / "whole", ragged(every=100)).train()
    work = Work(tmp_path / "work", ragged(every=100)).train(kill=13)
    assert len(work.outcomes) == 1
    agree(work.train(), whole)
    assert work.said("resumed") == [{"event": "resumed", "members": 3, "step": 0}]


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_checkpoints_are_some_seconds_apart(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(1000))  # one for each time that the clock is asked
    monkeypatch.setattr(spacing.time, "monotonic", lambda: float(next(seconds)))
    group = members(family("mlp", train__steps=24, train__checkpoint_every=2), [{}] * 2)

    def saved(pause: float) -> list[int]:
        monkeypatch.setattr(spacing, "SECONDS", pause)
        work = Work(tmp_path / str(pause), group, backend).train(kill=24)
        return sorted({int(path.name.removeprefix("step-")) for path in work.path.rglob("step-*")})

    assert saved(1.0)[-1] == 22
    assert saved(5.0)[-1] == 20, "of those due at 2, 4, ... the fifth and the tenth are"
    assert saved(1e9) == ([] if backend == "loop" else [0])


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_members_that_are_stopped_go_on_at_that_very_step(backend: str, tmp_path: Path) -> None:
    whole = Work(tmp_path / "whole", ragged(every=0), backend).train()
    work = Work(tmp_path / "work", ragged(every=0), backend).train(stop=3)
    assert max(reached(work.path, [m.name for m in work.group]).values()) == 3
    work.train(stop=17).train()
    agree(work, whole)
    assert 3 in [record["step"] for record in work.events if record["event"] in ("resumed", "started")]
    steps = [r["step"] for r in work.records if r.get("member") == "m3" and r.get("split") == "train"]
    assert steps == list(range(1, len(steps) + 1)), "no step is made twice"


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "rmsprop", "lion", "muon"])
def test_a_population_goes_on_with_the_state_of_every_optimizer(kind: str, tmp_path: Path) -> None:
    group = members(family("mlp", train__steps=8, train__checkpoint_every=3, optimizer={"kind": kind}), [{}] * 3)
    work = Work(tmp_path / "work", group).train(kill=5).train()
    assert work.said("resumed") == [{"event": "resumed", "members": 3, "step": 3}]
    agree(work, Work(tmp_path / "whole", group).train())


@pytest.mark.parametrize("name", ["cnn batch norm", "gpt"])
def test_a_population_goes_on_with_its_buffers_and_frozen_weights(name: str, tmp_path: Path) -> None:
    frozen = ["blocks.0.*"] if name == "gpt" else ["*.weight"]
    group = members(family(name, train__steps=6, train__checkpoint_every=2, freeze=frozen), [{}] * 2)
    given = [member(m.recipe, m.name, weights) for m, weights in zip(group, _weights(group), strict=True)]
    for some in (group, given):
        work = Work(tmp_path / "work", some).train(kill=5).train()
        assert work.said("resumed") == [{"event": "resumed", "members": 2, "step": 4}]
        agree(work, Work(tmp_path / "whole", some).train())


def _weights(group: Sequence[Member]) -> list[Any]:
    return [o.require().task.network.state_dict() for o in fit_all(group, "vmap")]


def test_a_compiled_population_goes_on_with_the_rows_that_rest_in_it(tmp_path: Path) -> None:

    group = members(family("mlp", train__steps=12), [{}, {"train.steps": 5}, {}, {}])
    whole, halves = Lockstep(group, Runtime()), [Lockstep(group, Runtime()) for _ in range(2)]
    for lockstep in (whole, *halves):
        lockstep.population.is_compiled = True  # as far as rows that rest are concerned
    for lockstep in (whole, halves[0]):
        while lockstep.step < 8:
            lockstep.advance()
    halves[1].restore(halves[0].capture())
    assert halves[1].at == halves[0].at and len(halves[1].population) == 4
    for lockstep in (whole, halves[1]):
        while lockstep.at:
            lockstep.advance()
    for name, outcome in halves[1].outcomes.items():
        assert same(outcome, whole.outcomes[name])


def test_parts_are_cut_as_they_were_although_other_memory_is_free_now(tmp_path: Path) -> None:
    group = ragged()
    _, each = members_at_once(group[0], Runtime().device)
    whole = Work(tmp_path / "whole", group).train(free_bytes=6 * each)  # three at once, of which half may be used
    work = Work(tmp_path / "work", group).train(kill=4, free_bytes=6 * each).train(stop=15).train()
    agree(work, whole)
    assert {event["members_at_once"] for event in work.said("population")} == {3}


def test_members_for_whom_another_decision_was_made_stay_apart() -> None:
    group = members(family("mlp"), [{}] * 4)
    events: list[dict[str, Any]] = [
        {"event": "population", "backend": "loop", "reason": "", "names": ["m0", "m2"]},
        {"event": "population", "backend": "vmap", "reason": "", "members_at_once": 2, "names": ["m1"]},
    ]
    assert [[m.name for m in b] for b in buckets(group, chosen(events))] == [["m0", "m2"], ["m1"], ["m3"]]


def test_members_whose_checkpoint_does_not_fit_begin_again_and_the_run_says_so(tmp_path: Path) -> None:
    wide, narrow = ragged(model__hidden=[8]), ragged(model__hidden=[16])
    work = Work(tmp_path / "work", wide).train(stop=4)
    work.group = narrow
    work.outcomes.clear()
    agree(work.train(), Work(tmp_path / "whole", narrow).train())
    assert "its members begin again" in work.said("warning")[0]["message"]


def test_members_that_memory_has_no_room_for_any_more_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.population import fit
    from core.population.lockstep import fit_together

    work, together = Work(tmp_path / "work", ragged()).train(stop=4), fit_together
    room = [False]

    def scarce(group: list[Member], *others: Any) -> Any:
        if not room[0]:
            room[0] = True
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate")
        return together(group, *others)

    monkeypatch.setattr(fit, "fit_together", scarce)
    ended = list(work.outcomes)
    work.train()
    assert len(work.outcomes) == 4 and "memory" in work.said("warning")[0]["message"]
    steps = [r["step"] for r in work.records if r.get("member") not in ended and r.get("split") == "train"]
    assert steps.count(1) == 2 * (4 - len(ended))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    whole = Work(tmp_path / "whole", ragged()).train()
    work = Work(tmp_path / "work", ragged()).train(kill=18)
    newest = sorted((work.path / "together-m0").glob("step-*"))[-1]
    (newest / "population.safetensors").write_bytes(b"")
    agree(work.train(), whole)
    assert work.said("checkpoint_rejected")[0]["checkpoint"] == f"together-m0/{newest.name}"


def test_a_population_of_which_no_checkpoint_is_whole_is_refused(tmp_path: Path) -> None:
    work = Work(tmp_path / "work", ragged()).train(kill=18)
    for file in work.path.rglob("manifest.json"):
        file.write_text("{}")
    with pytest.raises(DataError, match=r"no checkpoint is whole .* remove .*together-m0 to train its members"):
        work.train()


def test_a_member_killed_between_its_summary_and_the_end_of_its_place_leaves_nothing(tmp_path: Path) -> None:
    work = Work(tmp_path / "work", ragged()).train(stop=3)
    shutil.copytree(work.path, tmp_path / "left")
    work.train()
    places = Places(tmp_path / "left", list(work.outcomes))
    assert places.read([m.name for m in work.group]) == [] and not places.populations
    assert not list((tmp_path / "left").iterdir())
    (tmp_path / "left" / ".tmp-removed-together-m0").mkdir()
    clear(tmp_path / "left")
    assert not list((tmp_path / "left").iterdir())


def test_rows_of_other_widths_go_on_with_the_bits_of_undisturbed_ones(tmp_path: Path) -> None:
    """When the member with the longest batches has ended, the others' batches lose the fill that made them as long."""
    base = family("mlp", train__steps=12, train__checkpoint_every=4, train__batch_size=1000)
    changes: list[dict[str, Any]] = [{"train.steps": 5}, {"data.split.test": 0.6}, {"data.split.test": 0.8}]
    group = members(base, changes)
    work = Work(tmp_path / "work", group).train(kill=9).train()
    assert work.said("resumed") == [{"event": "resumed", "members": 2, "step": 8}]
    agree(work, Work(tmp_path / "whole", group).train())
