"""Spreads and bands over members, against SciPy and the published formula; what members lack; what is too large."""

import math
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ensemble.spread import Point, Spread, band, spread_of, student_t

SCORES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)


@pytest.mark.parametrize("degrees", [*range(1, 60), 99, 100, 1000])
def test_students_t_is_that_of_scipy(degrees: int) -> None:
    from scipy import stats

    assert student_t(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-12)


@given(SCORES)
def test_mean_std_and_interval_are_those_of_numpy_and_scipy(scores: list[float]) -> None:
    from scipy import stats

    spread = spread_of([{"score": score} for score in scores])["score"]
    mean, std, count = np.mean(scores), np.std(scores, ddof=1), len(scores)
    near = {"rel": 1e-9, "abs": 1e-9}
    assert (spread.mean, spread.std, spread.members) == (pytest.approx(mean, **near), pytest.approx(std, **near), count)
    if std > 1e-9:
        expected = stats.t.interval(0.95, count - 1, loc=mean, scale=std / math.sqrt(count))
        assert (spread.low, spread.high) == (pytest.approx(expected[0], **near), pytest.approx(expected[1], **near))


@pytest.mark.parametrize("folds, seeds", [(2, 1), (5, 1), (10, 1), (5, 4)])
def test_folds_have_the_corrected_interval_of_nadeau_and_bengio(folds: int, seeds: int) -> None:
    from scipy import stats

    scores = np.random.default_rng(0).normal(0.7, 0.01, folds * seeds)
    count, train, test = len(scores), 1 - 1 / folds, 1 / folds
    variance = (1 / count + test / train) * scores.var(ddof=1)
    reach = stats.t.ppf(0.975, count - 1) * math.sqrt(variance)
    spread = spread_of([{"accuracy": score} for score in scores], folds)["accuracy"]
    assert (spread.low, spread.high) == pytest.approx((scores.mean() - reach, scores.mean() + reach), rel=1e-12)


@pytest.mark.parametrize(
    "name, scores, low, high",
    [
        ("roc_auc", [0.999, 0.97, 1.0], None, 1.0),
        ("accuracy", [0.01, 0.0, 0.05], 0.0, None),
        ("f1_macro", [0.1, 0.9], 0.0, 1.0),
        ("r2", [0.9, 1.0, 0.99], None, 1.0),
        ("rmse", [0.1, 2.0], 0.0, None),
        ("perplexity", [1.01, 1.5], 1.0, None),
    ],
)
def test_the_interval_of_a_bounded_metric_stays_in_its_range(
    name: str, scores: list[float], low: float | None, high: float | None
) -> None:
    bounded, free = (spread_of([{key: score} for score in scores])[key] for key in (name, "anything"))
    assert (bounded.low, bounded.high) == (free.low if low is None else low, free.high if high is None else high)
    assert (bounded.mean, bounded.std) == (free.mean, free.std)
    folds = spread_of([{name: score} for score in scores * 2], 2, [0, 1] * len(scores))[name]
    assert folds.low is not None and folds.high is not None
    assert (low is None or folds.low >= low) and (high is None or folds.high <= high)


def test_a_metric_counts_over_the_members_that_have_it() -> None:
    found = spread_of([{"loss": 1.0, "roc_auc": 0.5}, {"loss": 3.0}, {"loss": 5.0, "roc_auc": math.nan}])
    assert list(found) == ["loss", "roc_auc"]
    assert (found["loss"].mean, found["loss"].std, found["loss"].members) == (3.0, 2.0, 3)
    assert found["roc_auc"] == Spread(0.5, None, None, None, 1)


def test_a_metric_that_no_member_has_as_a_number_is_left_out() -> None:
    assert spread_of([{"roc_auc": math.nan}, {}]) == {}
    assert spread_of([]) == {}


def test_members_that_agree_have_an_interval_of_no_width() -> None:
    assert spread_of([{"loss": 0.1}] * 3)["loss"] == Spread(0.1, 0.0, 0.1, 0.1, 3)


def test_an_infinite_value_leaves_an_infinite_mean_and_nothing_else() -> None:
    assert spread_of([{"perplexity": math.inf}, {"perplexity": 2.0}])["perplexity"] == Spread(
        math.inf, None, None, None, 2
    )


def test_values_whose_squares_are_too_large_have_a_spread() -> None:
    spread = spread_of([{"perplexity": 1e250}, {"perplexity": 3e250}])["perplexity"]
    assert spread.std == pytest.approx(math.sqrt(2) * 1e250)


@given(SCORES, st.randoms(use_true_random=False))
def test_the_order_of_the_members_changes_no_bit(scores: list[float], order: random.Random) -> None:
    rows = [{"loss": score} for score in scores]
    mixed = rows.copy()
    order.shuffle(mixed)
    assert spread_of(rows) == spread_of(mixed)


def record(member: str, step: int, split: str = "train", **values: Any) -> dict[str, Any]:
    return {"member": member, "step": step, "split": split, "time": 1.0, "eta_s": 2.0, "steps": 9, **values}


def test_a_band_is_the_mean_and_deviation_at_each_step_in_order() -> None:
    records = [record("b", 10, loss=1.0), record("a", 0, loss=3.0), record("b", 0, loss=5.0), record("a", 10, loss=1.0)]
    records += [record("a", 10, "validation", loss=2.0, accuracy=0.5), record("b", 10, "validation", loss=4.0)]
    assert band(records) == {
        ("train", "loss"): [Point(0, 4.0, math.sqrt(2), 2), Point(10, 1.0, 0.0, 2)],
        ("validation", "loss"): [Point(10, 3.0, math.sqrt(2), 2)],
    }


def test_a_band_leaves_out_steps_that_one_member_alone_reached() -> None:
    records = [record(member, step, loss=1.0) for member in ("a", "b", "c") for step in (0, 5, 10)]
    late = [record("a", 15, loss=1.0)]
    points = band([r for r in records if (r["member"], r["step"]) != ("c", 10)] + late)["train", "loss"]
    assert [(point.step, point.members) for point in points] == [(0, 3), (5, 3), (10, 2)]


def test_the_last_record_of_a_members_step_counts() -> None:
    records = [record("a", 5, loss=100.0), record("b", 5, loss=4.0), record("a", 5, loss=2.0)]
    assert band(records)["train", "loss"] == [Point(5, 3.0, math.sqrt(2), 2)]


def test_a_band_takes_numbers_only() -> None:
    records = [record(m, 0, loss=math.nan, accuracy=None, best=True, note="x", lr=0.5) for m in ("a", "b")]
    records += [{"event": "started", "member": "a"}, {"split": "train", "step": 0, "lr": 9.0}]
    assert band(records) == {("train", "lr"): [Point(0, 0.5, 0.0, 2)]}


def test_spreads_and_repeats_are_read_without_torch() -> None:
    code = (
        "import sys, core.ensemble.spread, core.ensemble.repeat; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_seeds_of_one_fold_do_not_make_the_interval_narrower() -> None:
    folds = [{"accuracy": value} for value in (0.9, 0.92, 0.97)]
    twice = [row for row in folds for _ in range(2)]
    alone, together = spread_of(folds, 3), spread_of(twice, 3, [0, 0, 1, 1, 2, 2])
    assert (together["accuracy"].low, together["accuracy"].high) == (alone["accuracy"].low, alone["accuracy"].high)
    assert together["accuracy"].members == 6 and together["accuracy"].mean == alone["accuracy"].mean
