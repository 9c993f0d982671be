"""Federated runs in one picture: how good each is after so many rounds, so much simulated time, and so many bytes.

One page with inline drawings, made from the run directories alone. No torch.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.errors import DataError
from core.storage.store import Run
from hanse.format import duration, number, size
from hanse.report.charts import HALF, SMALL, Series, escape, line_chart
from hanse.report.federation import JUDGES, SIZES, TIMES, Rounds, figure, unit_of
from hanse.report.words import document, grid, is_number, mapping, named, written

LOOKS = ("train", "validation", "test", "clients", "personal", "soft")  # colors; then they come again, dashed
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)  # accuracies to be reached
TITLES = {"validation": "on validation", "clients": "over what clients hold out", "personal": "of personal models"}


@dataclass(frozen=True)
class _Compared:
    """One run: its name on the page and how it is drawn. times, moved: by round, seconds and bytes so far."""

    run: Run
    name: str
    look: str
    rounds: Rounds
    times: Mapping[int, float]
    moved: Mapping[int, float]


def compare_pages(runs: Sequence[Run], differences: Sequence[Mapping[str, object]] = ()) -> str:
    """The page. differences: rows {"what": KEY, RUN ID: value, ...} to show below, such as configs that differ.

    Raises DataError for a run that is no federation, or has no metrics that can be read.
    """
    compared = [_compared(run, runs, i) for i, run in enumerate(runs)]
    metric = next((name for name in (one.rounds.headline() for one in compared) if name != "loss"), "loss")
    legend = "".join(f'<span class="key s-{one.look}">{escape(one.name)}</span>' for one in compared)
    head = (
        f'<header><h1>{len(runs)} federations</h1><p class="about legend">{legend}</p>'
        f"</header>\n<h2>Results</h2>\n{_results(compared, metric)}"
    )
    sections = [_section(compared, split, metric) for split in JUDGES]
    sections += [_soon(compared, metric), _training(compared), _differences(compared, differences)]
    return document("Federations compared", [head, *sections, "<footer>Hanse</footer>"])


def _compared(run: Run, runs: Sequence[Run], place: int) -> _Compared:
    if not str(run.record.get("verb")).startswith("federate"):
        raise DataError(f"{run.id}: is no federation; only the runs of `hanse federate` are drawn together")
    rounds = Rounds.of(run.metrics())
    names = [_short(other.id) for other in runs]
    look = LOOKS[place % len(LOOKS)] + (" dashed" if place >= len(LOOKS) else "")
    name = names[place] if names.count(names[place]) == 1 else run.id
    times = {round: s for round, s in rounds.column("train", "simulated_s").items() if not math.isnan(s)}
    return _Compared(run, name, look, rounds, times, rounds.total("bytes_up", "bytes_down"))


def _short(run_id: str) -> str:
    """A run's own name, without the time before it and the hash after it."""
    return re.sub(r"^\d{4}-\d{4}-|-[0-9a-f]{4}$", "", run_id) or run_id


def _results(compared: Sequence[_Compared], metric: str) -> str:
    rows = []
    for one in compared:
        rounds, last = one.rounds, one.rounds.last("train")
        scores = [escape(written(metric, rounds.last(split).get(metric))) for split in ("test", *JUDGES)]
        worst = mapping(mapping(rounds.last("clients").get("spread")).get(metric)).get("worst")
        took = duration(max(one.times.values())) if one.times else "-"
        moved = size(max(one.moved.values(), default=0))
        title = f'<span class="key s-{one.look}">{escape(one.name)}</span>'
        done = number(last["round"]) if last else "-"
        rows.append([title, *scores, escape(written(metric, worst)), done, moved, took])
    what = ("test", "validation", "clients", "personal", "worst client")
    columns = (f"{named(metric)}, by run", *what, "rounds", "moved", "simulated time")
    return f'<div class="card scroll">{grid(columns, rows)}</div>'


def _section(compared: Sequence[_Compared], split: str, metric: str) -> str:
    """One split's metric over rounds, simulated time and bytes."""
    if not any(one.rounds.records(split) for one in compared):
        return ""
    title = f"{named(metric)[:1].upper()}{named(metric)[1:]}"
    drawn = _three(compared, title, lambda one, at: one.rounds.series(split, metric, at))
    return f'<h2>{escape(title)} <span class="about">{TITLES[split]}</span></h2>\n{drawn}'


def _training(compared: Sequence[_Compared]) -> str:
    if not any(one.rounds.column("train", "loss") for one in compared):
        return ""
    drawn = _three(compared, "Loss", lambda one, at: replace(one.rounds.series("train", "loss", at), smooth=True))
    return f'<h2>Loss <span class="about">of the cohorts, while they train</span></h2>\n{drawn}'


def _three(
    compared: Sequence[_Compared], title: str, series: Callable[[_Compared, Mapping[int, float] | None], Series]
) -> str:
    """The same curves over rounds, over simulated time where there is any, and over bytes."""
    per_time, time = unit_of((s for one in compared for s in one.times.values()), TIMES)
    per_size, unit = unit_of((b for one in compared for b in one.moved.values()), SIZES)
    axes: list[tuple[str, str, Callable[[_Compared], Mapping[int, float] | None]]] = [
        ("over rounds", "round", lambda one: None),
        ("over what was sent", f"{unit} moved", lambda one: _divided(one.moved, per_size)),
    ]
    if any(one.times for one in compared):
        over_time = ("over simulated time", f"simulated {time}", lambda one: _divided(one.times, per_time))
        axes.insert(1, over_time)
    parts = []
    for words, axis, places in axes:
        curves = [_plain(series(one, places(one)), one) for one in compared]
        frame = replace(SMALL, axis=axis) if len(axes) == 3 else replace(HALF, axis=axis, names=False, right=58)
        parts.append(figure(title, line_chart(f"{title} {words}", curves, frame), [words]))
    return f'<div class="{"three" if len(axes) == 3 else "two"}">{"".join(parts)}</div>'


def _divided(values: Mapping[int, float], by: float) -> dict[int, float]:
    return {round: value / by for round, value in values.items()}


def _plain(series: Series, one: _Compared) -> Series:
    """The curve alone: bands of several runs would hide each other."""
    return Series(one.name, series.points, series.smooth, color=one.look)


def _soon(compared: Sequence[_Compared], metric: str) -> str:
    """After how many rounds, how much simulated time and how many bytes a run first reached an accuracy."""
    split = next((s for s in JUDGES if all(one.rounds.records(s) for one in compared)), None)
    if metric != "accuracy" or split is None:
        return ""
    rows = []
    for level in LEVELS:
        firsts = [_first(one.rounds.column(split, metric), level) for one in compared]
        if any(first is not None for first in firsts):
            cells = [_reached(one, first) for one, first in zip(compared, firsts, strict=True)]
            rows.append([f"{100 * level:g}%", *cells])
    if not rows:
        return ""
    table = grid(("accuracy", *(one.name for one in compared)), rows)
    words = f"the first evaluation {TITLES[split]} that reaches it"
    return f'<h2>How soon <span class="about">{words}</span></h2>\n<div class="card scroll">{table}</div>'


def _first(column: Mapping[int, float], level: float) -> int | None:
    return next((round for round, value in column.items() if value >= level), None)


def _reached(one: _Compared, round: int | None) -> str:
    if round is None:
        return "-"
    said = [f"round {round}"]
    said += [duration(one.times[round])] if round in one.times else []
    said += [size(one.moved[round])] if round in one.moved else []
    return escape(", ".join(said))


def _differences(compared: Sequence[_Compared], rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    cells = [[escape(_cell(row.get(key))) for key in ("what", *(one.run.id for one in compared))] for row in rows]
    table = grid(("what", *(one.name for one in compared)), cells)
    return f'<h2>Where they differ</h2>\n<div class="card scroll">{table}</div>'


def _cell(value: object) -> str:
    return number(value) if is_number(value) else "-" if value is None else str(value)
