"""One line for many members."""

import pytest

from core.runtime import Record
from hanse import crowd
from hanse.crowd import Crowd


def test_the_time_left_counts_the_steps_made_now_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, shown = [100.0], list[Record]()
    monkeypatch.setattr(crowd.time, "monotonic", lambda: clock[0])
    line = Crowd(members=4, ended=1, steps=100, every=1, show=shown.append, reached={"seed-1": 50, "seed-2": 80})
    record: Record = {"member": "seed-1", "split": "train", "loss": 1.0, "memory_bytes": 1}
    line({**record, "step": 51})
    clock[0] += 10
    line({**record, "step": 71})
    assert "eta_s" not in shown[0]
    # 21 steps in 10 s; of 400 are left 29 of this member, 20 of another and 100 of a third
    assert shown[1]["eta_s"] == pytest.approx(149 * 10 / 21)
    assert (shown[1]["step"], shown[1]["members"]) == (62, "1/4")


def test_a_line_that_names_a_member_says_its_own_step() -> None:
    shown = list[Record]()
    line = Crowd(members=4, ended=1, steps=100, every=1, show=shown.append, reached={})
    record: Record = {"split": "train", "loss": 1.0, "memory_bytes": 1}
    line({**record, "member": "seed-1", "step": 40})
    line({**record, "member": "seed-2", "step": 40})
    assert (shown[0]["step"], shown[0]["of"]) == (35, "seed-1 at step 40")
    assert shown[1]["step"] == 45 and "of" not in shown[1]  # of both, in the mean
