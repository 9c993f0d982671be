"""How much the members of a repeat differ: mean, standard deviation and interval of each metric, and of each curve.

Plain numbers in and out. The intervals say how sure the mean over members is on the data that judged them; that those
are a sample as well, they do not say.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

LEVEL = 0.95  # how often an interval holds the mean
# What a metric can be; one that is not here can be anything.
_SHARES = (
    "accuracy", "balanced_accuracy", "token_accuracy", "roc_auc",
    *(f"{name}_{mean}" for name in ("precision", "recall", "f1") for mean in ("macro", "micro")),
)  # fmt: skip
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_SHARES, (0.0, 1.0)),
    **dict.fromkeys(("loss", "mae", "rmse", "bits_per_byte"), (0.0, math.inf)),
    "perplexity": (1.0, math.inf),
    "r2": (-math.inf, 1.0),
}
_NO_METRICS = {"step", "steps", "time", "eta_s"}  # numbers of a record that no member has a say in


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over `members` members, and the 95 % interval of the mean.

    All but the mean are None if it is not finite, or of one member only.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    members: int


class Point(NamedTuple):
    """A curve over members at one step; std as in `Spread`."""

    step: int
    mean: float
    std: float
    members: int


def spread_of(values: Sequence[Mapping[str, float]], folds: int = 0, fold_of: Sequence[int] = ()) -> dict[str, Spread]:
    """The spread of every metric; each mapping holds one member's metrics. A member counts for those that it has.
    `fold_of`: each member's fold, where several seeds share one: they say nothing new about other rows, so the interval
    is that of the folds' means.

    The interval is mean +- t * std * sqrt(1 / J) of J members, with Student's t of J - 1 degrees of freedom. Members of
    `folds` (>= 2; 0: there are none) share training rows and so err alike: there it is sqrt(1 / J + 1 / (folds - 1)),
    where the second term is test over training rows (Nadeau and Bengio, Machine Learning 52, 2003, corrected resampled
    t; rows that validate count as training). It ends where the metric does: no accuracy is above 1.
    """
    columns: dict[str, list[float]] = {}
    for row in values:
        for name, value in row.items():
            if _is_number(value):
                columns.setdefault(name, []).append(value)
    found = {name: _within_range(name, _spread(column, folds)) for name, column in columns.items()}
    if len(set(fold_of)) == len(fold_of):
        return found
    by_fold = [
        [row for row, fold in zip(values, fold_of, strict=True) if fold == one] for one in dict.fromkeys(fold_of)
    ]
    means = spread_of([{name: one.mean for name, one in spread_of(rows).items()} for rows in by_fold], folds)
    return {name: replace(one, low=means[name].low, high=means[name].high) for name, one in found.items()}


def band(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Point]]:
    """(split, metric) -> the mean curve, from metrics records {"member", "split", "step", METRIC: number, ...}.

    In order of step, where at least two members have the metric; a member's last record of a step counts.
    """
    values: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        member, split, step = (record.get(key) for key in ("member", "split", "step"))
        if not (isinstance(member, str) and isinstance(split, str) and isinstance(step, int)):
            continue
        for name, value in record.items():
            if name not in _NO_METRICS and _is_number(value):
                values[split, name][step][member] = value
    curves = {key: _curve(by_step) for key, by_step in values.items()}
    return {key: points for key, points in curves.items() if points}


def student_t(degrees: int) -> float:
    """The t that a variable of Student's distribution with so many degrees of freedom (>= 1) stays within, both ways,
    with probability 0.95."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves the range to below float64's rounding
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < LEVEL else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


# --- sums ----------------------------------------------------------------------------------------------------------


def _within(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) * tan(angle)), exactly (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term = total = cosine if is_odd else 1.0
    for i in range(2 + is_odd, degrees - 1, 2):
        term *= cosine**2 * (i - 1) / i
        total += term
    if not is_odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))


def _spread(values: list[float], folds: int) -> Spread:
    count = len(values)
    mean, std = _moments(values)
    if std is None:
        return Spread(mean, None, None, None, count)
    correction = 1 / (folds - 1) if folds else 0.0
    reach = student_t(count - 1) * std * math.sqrt(1 / count + correction)
    return Spread(mean, std, mean - reach, mean + reach, count)


def _within_range(name: str, one: Spread) -> Spread:
    """The interval without what the metric cannot be."""
    if one.low is None or one.high is None:
        return one
    lowest, highest = _RANGES.get(name, (-math.inf, math.inf))
    return replace(one, low=max(one.low, lowest), high=min(one.high, highest))


def _curve(by_step: Mapping[int, Mapping[str, float]]) -> list[Point]:
    points = []
    for step, by_member in sorted(by_step.items()):
        mean, std = _moments(list(by_member.values()))
        if std is not None:
            points.append(Point(step, mean, std, len(by_member)))
    return points


def _moments(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation, of equal values exactly; one value, or an infinite one, has no deviation."""
    values, count = sorted(values), len(values)  # so that no bit depends on the order of completion
    if count < 2 or not math.isfinite(sum(values)):
        return sum(values) / count, None
    mean = values[0] + math.fsum(value - values[0] for value in values) / count
    return mean, math.hypot(*(value - mean for value in values)) / math.sqrt(count - 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
