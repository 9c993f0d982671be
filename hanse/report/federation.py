"""What a report says of a federation: how it learned over rounds and simulated time, what was sent, who took part, and
how differently the clients fare.

Made from metrics.jsonl, events.jsonl and summary.json, whose records count rounds. No torch.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hanse.format import HEADLINES, duration, number, size
from hanse.report.charts import HALF, Frame, Series, escape, line_chart
from hanse.report.cohorts import FAILURES, Absence, absences, cohort_map
from hanse.report.words import grid, is_number, mapping, named, tile, written

Record = dict[str, Any]
SPLITS = ("train", "validation", "clients", "personal", "test")
JUDGES = ("validation", "clients", "personal")  # the splits that are judged over and over
# What a simulated time and a number of bytes are counted in; the largest that leaves at least 3
TIMES = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
MAX_REASONS = 40  # rows of the table of who failed; events.jsonl holds the rest
MAX_TRACES = 5
NARROW = 20  # rounds whose picture needs half a page
# What the drawing of a partition consists of: nothing else in its file is let into a page
DRAWN = {"svg", "desc", "g", "text", "circle", "title"}


@dataclass(frozen=True)
class Rounds:
    """The metrics of a federation by split and round; of a round that was done twice, the last counts."""

    by_split: Mapping[str, Mapping[int, Record]]

    @classmethod
    def of(cls, metrics: Iterable[Record]) -> "Rounds":
        """Records without a round are left out."""
        found: dict[str, dict[int, Record]] = defaultdict(dict)
        for record in metrics:
            round = record.get("round")
            if isinstance(round, int) and not isinstance(round, bool) and round > 0:
                found[str(record.get("split"))][round] = record
        return cls({split: dict(sorted(records.items())) for split, records in found.items()})

    def records(self, split: str) -> list[Record]:
        """In order of rounds."""
        return list(self.by_split.get(split, {}).values())

    def last(self, split: str) -> Record:
        """The newest one; empty if there is none."""
        records = self.records(split)
        return records[-1] if records else {}

    def headline(self) -> str:
        """The metric to follow: the first of the well-known ones that is judged, besides the loss."""
        records = [record for split in JUDGES for record in self.records(split)]
        return next((name for name in HEADLINES if any(is_number(record.get(name)) for record in records)), "loss")

    def column(self, split: str, name: str) -> dict[int, float]:
        """By round; what is there but no number is NaN."""
        records = self.by_split.get(split, {})
        return {
            round: float(record[name]) if is_number(record[name]) else math.nan
            for round, record in records.items()
            if name in record
        }

    def total(self, *names: str) -> dict[int, float]:
        """By round of training: the sum of these over it and all before."""
        sums, so_far = {}, 0.0
        for round, record in self.by_split.get("train", {}).items():
            so_far += sum(record[name] for name in names if is_number(record.get(name)))
            sums[round] = so_far
        return sums

    def series(self, split: str, name: str, at: Mapping[int, float] | None = None, worst: bool = False) -> Series:
        """A curve over rounds, or over what `at` says of a round. Of what clients judge, its band is from the quantile
        0.1 to 0.9 over them; with `worst`, a thin line is the worst of them."""
        column = self.column(split, name)
        places = {round: float(round) for round in column} if at is None else at
        rounds = [round for round in column if round in places]
        spreads = [mapping(mapping(self.by_split[split][round].get("spread")).get(name)) for round in rounds]
        points = [(places[round], column[round]) for round in rounds]
        whole = all(is_number(spread.get(key)) for spread in spreads for key in ("q10", "q90", "worst"))
        if not points or not whole or any(math.isnan(y) for _, y in points):
            return Series(split, points)
        thin = tuple([[(x, spread["worst"]) for (x, _), spread in zip(points, spreads, strict=True)]] if worst else [])
        return Series(split, points, band=tuple((s["q10"], s["q90"]) for s in spreads), members=thin)


def unit_of(values: Iterable[float], units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """What to count them in: the largest unit of which the largest value has at least 3."""
    most = max(values, default=0.0)
    return next((unit for unit in units if most >= 3 * unit[0]), units[-1])


# --- the head ------------------------------------------------------------------------------------------------------


def about(events: Sequence[Record]) -> str:
    """`10 clients, 5 a round`, without the second where all are asked; empty before the run has begun."""
    said = next((event for event in reversed(events) if event.get("event") == "federation"), {})
    clients, cohort = said.get("clients"), said.get("cohort")
    if not is_number(clients):
        return ""
    return f"{number(clients)} clients" + (
        f", {number(cohort)} a round" if is_number(cohort) and cohort < clients else ""
    )


def tiles(rounds: Rounds, summary: Mapping[str, Any]) -> list[str]:
    """How good the model is, for the server and for its clients, and what it took."""
    found, scores = [], mapping(summary.get("metrics"))
    split, name = str(summary.get("split")), rounds.headline()
    if not is_number(scores.get(name)):
        split = next((s for s in ("validation", "train") if is_number(rounds.last(s).get(name))), "train")
        scores = rounds.last(split)
    if is_number(scores.get(name)):
        found.append(tile(f"{split} {named(name)}", escape(written(name, scores[name])), lead=split))
    found += [_fare_tile(rounds.last(model), model, name) for model in ("clients", "personal") if rounds.last(model)]
    last = rounds.last("train") or rounds.last("clients")  # trees have no training loss
    if last:
        planned = last.get("rounds")
        note = f"of {number(planned)}" if is_number(planned) and planned > last["round"] else ""
        found.append(tile("rounds", number(last["round"]), note))
    if "bytes_up" in last:
        up, down = (max(rounds.total(way).values()) for way in ("bytes_up", "bytes_down"))
        found.append(tile("moved", _with_unit(size(up + down)), f"{size(up)} up, {size(down)} down"))
    if is_number(seconds := last.get("simulated_s")):
        content = f"{seconds:.1f} <small>s</small>" if seconds < 60 else duration(seconds)
        found.append(tile("simulated time", content))
    return found


def _fare_tile(record: Record, model: str, name: str) -> str:
    spread = mapping(mapping(record.get("spread")).get(name))
    notes = [f"± {written(name, spread['std'])}"] if is_number(spread.get("std")) else []
    if is_number(spread.get("worst")):
        notes.append(f"worst {written(name, spread['worst'])}, client {spread.get('worst_client', '?')}")
    title = f"clients' {named(name)}" if model == "clients" else f"{model} {named(name)}"
    return tile(title, escape(written(name, record.get(name))), "; ".join(notes), lead=model)


def _with_unit(text: str) -> str:
    value, unit = text.split()
    return f"{value} <small>{unit}</small>"


# --- the sections --------------------------------------------------------------------------------------------------


def sections(rounds: Rounds, events: Sequence[Record], directory: Path) -> list[str]:
    """All that a federation's report has between its head and the scores."""
    cohorts = rounds.records("cohort")
    away = absences(cohorts, events)
    return [
        _curves(rounds, events),
        _traffic(rounds),
        _clients(cohort_map(cohorts, away), directory, is_narrow=rounds.last("train").get("round", 0) <= NARROW),
        _failures(away),
        _fares(rounds),
    ]


def others(events: Iterable[Record]) -> list[Record]:
    """The events without those of single clients, which have a table of their own."""
    return [event for event in events if event.get("event") not in FAILURES]


def _curves(rounds: Rounds, events: Sequence[Record]) -> str:
    name = rounds.headline()
    parts = [_losses(rounds, events), _metric_charts(rounds, name) if name != "loss" else ""]
    return "<h2>Learning curves</h2>\n" + "\n".join(filter(None, parts)) if any(parts) else ""


def _losses(rounds: Rounds, events: Sequence[Record]) -> str:
    losses = [replace(rounds.series(split, "loss"), smooth=split == "train") for split in SPLITS]
    if not any(series.points for series in losses):
        return ""
    began = [event.get("round") for event in events if event.get("event") == "federation"]
    marks = [(float(round), "resumed") for round in began if is_number(round) and round]
    chart = line_chart("Loss", losses, Frame(axis="round"), marks=list(dict.fromkeys(marks))[-6:])
    notes = ["shaded: from 10% to 90% of the clients"] if any(s.band for s in losses) else []
    notes += ["faint: each round; bold: moving mean"] if losses[0].is_smoothed else []
    return figure("Loss", chart, notes, "scroll wide")


def _metric_charts(rounds: Rounds, name: str) -> str:
    """Over rounds, and beside it over simulated time, where there is any."""
    title = named(name)[:1].upper() + named(name)[1:]
    judged = [rounds.series(split, name, worst=True) for split in SPLITS]
    notes = ["thin: the worst client"] if any(s.members for s in judged) else []
    times = rounds.column("train", "simulated_s")
    if not times:
        return figure(title, line_chart(title, judged, Frame(axis="round")), notes, "scroll wide")
    per, unit = unit_of(times.values(), TIMES)
    places = {round: seconds / per for round, seconds in times.items()}
    timed = [rounds.series(split, name, places, worst=True) for split in SPLITS]
    over_time = line_chart(f"{title} over simulated time", timed, replace(HALF, axis=f"simulated {unit}"))
    over_rounds = line_chart(f"{title} over rounds", judged, replace(HALF, axis="round"))
    left = figure(title, over_rounds, ["over rounds", *notes])
    right = figure(title, over_time, ["over simulated time"])
    return f'<div class="two">{left}{right}</div>'


def _traffic(rounds: Rounds) -> str:
    """Bytes so far, and how many clients count in each round."""
    if not rounds.records("train"):
        return ""
    ways = {name: rounds.total(f"bytes_{name}") for name in ("down", "up")}
    per, unit = unit_of((value for way in ways.values() for value in way.values()), SIZES)
    looks = {"down": "train", "up": "validation dashed"}
    series = [
        Series(name, [(float(round), value / per) for round, value in way.items()], color=looks[name])
        for name, way in ways.items()
    ]
    frame = replace(HALF, axis="round", right=92)
    left = figure("Moved", line_chart("Moved so far", series, frame, from_zero=True), [f"{unit}, all rounds so far"])
    counts = [_counted(rounds, name, look) for name, look in (("clients", "test"), ("failed", "personal"))]
    chart = line_chart("Clients in each round", counts, frame, from_zero=True)
    right = figure("Clients", chart, ["counted in a round, and failed or lost"])
    return f'<h2>Traffic</h2>\n<div class="two">{left}{right}</div>'


def _counted(rounds: Rounds, name: str, look: str) -> Series:
    title = "counted" if name == "clients" else name
    column = rounds.column("train", name).items()
    return Series(title, [(round, int(count)) for round, count in column if count >= 0], smooth=True, color=look)


def _clients(drawn: str, directory: Path, is_narrow: bool) -> str:
    """Who took part, and which examples each client has; side by side where there is room."""
    parts, file = [drawn] if drawn else [], directory / "partition.svg"
    if file.is_file():
        picture = drawing_of(file.read_text(encoding="utf-8", errors="replace"))
        if picture:
            parts.append(figure("Partition", picture, ["a disc's area: the number of examples"], "scroll plain"))
    if len(parts) == 2 and is_narrow:
        parts = [f'<div class="two">{"".join(parts)}</div>']
    return "<h2>Clients</h2>\n" + "\n".join(parts) if parts else ""


def drawing_of(text: str) -> str:
    """A drawing to put into a page; empty if there is anything in it that a drawing of a partition has not."""
    tags = set(re.findall(r"</?([^\s/>]*)", text))
    attributes = re.findall(r"<[^>]*\s(?:on\w*|href|xlink:href|src)\s*=", text, re.IGNORECASE)
    if not text.startswith("<svg ") or not tags <= DRAWN or attributes or "url(" in text:
        return ""
    return re.sub(r' xmlns="[^"]*"', "", text, count=1)


def _failures(away: Sequence[Absence]) -> str:
    """What went wrong with clients: the most frequent first."""
    if not away:
        return ""
    kinds: dict[tuple[str, str], list[Absence]] = defaultdict(list)
    for absence in away:
        kinds[absence.kind, re.sub(r"\d[\d.]*(e[-+]?\d+)?", "#", absence.reason)].append(absence)
    ordered = sorted(kinds.values(), key=lambda found: -len(found))
    rows = "".join(_failure_row(found) for found in ordered[:MAX_REASONS])
    names = "".join(f'<th scope="col">{name}</th>' for name in ("what", "why", "who, most often first", "rounds"))
    head = f'<thead><tr>{names}<th class="n" scope="col">times</th></tr></thead>'
    left_out = len(ordered) - MAX_REASONS
    note = f'<p class="note">{left_out} rarer reasons are in events.jsonl.</p>' if left_out > 0 else ""
    traces = [found[-1] for found in ordered if found[-1].traceback][:MAX_TRACES]
    shown = "".join(
        f"<details><summary>client {t.client} in round {t.round}: {escape(t.reason)}</summary>"
        f'<div class="card"><pre tabindex="0">{escape(t.traceback)}</pre></div></details>'
        for t in traces
    )
    table = f'<table class="away">{head}<tbody>{rows}</tbody></table>'
    return f'<h2>Who did not count, and why</h2>\n<div class="card scroll">{table}{note}</div>{shown}'


def _failure_row(found: Sequence[Absence]) -> str:
    first, last = found[0], found[-1]
    tone = "" if first.kind == "lost" else "failed"
    clients = Counter(absence.client for absence in found).most_common(8)
    who = ", ".join(f"{client}" + (f" ({count}x)" if count > 1 else "") for client, count in clients)
    more = len({absence.client for absence in found}) - len(clients)
    who += f" and {more} more" if more else ""
    rounds = f"{first.round}" if first.round == last.round else f"{first.round} to {last.round}"
    return (
        f'<tr><td class="{tone}">{escape(first.kind)}</td><td>{escape(last.reason)}</td><td>{who}</td>'
        f"<td>{rounds}</td><td class=n>{len(found):,}</td></tr>"
    )


def _fares(rounds: Rounds) -> str:
    """How differently the clients fare by the last evaluation, each counting once."""
    parts = []
    for model in ("clients", "personal"):
        record = rounds.last(model)
        spread = {name: mapping(found) for name, found in mapping(record.get("spread")).items()}
        if not spread:
            continue
        rows = [_fare_row(name, record.get(name), found) for name, found in spread.items()]
        names = ("metric", "together", "mean", "std", "10%", "median", "90%", "worst", "client", "clients")
        title = "The shared model" if model == "clients" else "Personal models"
        caption = f"<figcaption>{title}<span>after round {record['round']}</span></figcaption>"
        parts.append(f'<figure class="scroll">{caption}{grid(names, rows)}</figure>')
    return "<h2>How the clients fare</h2>\n" + "\n".join(parts) if parts else ""


def _fare_row(name: str, together: object, spread: Mapping[str, Any]) -> list[str]:
    values = (together, *(spread.get(key) for key in ("mean", "std", "q10", "q50", "q90", "worst")))
    counts = (spread.get(key, "-") for key in ("worst_client", "clients"))
    return [escape(text) for text in (named(name), *(written(name, value) for value in values), *counts)]


def figure(title: str, drawing: str, notes: Sequence[str] = (), kind: str = "") -> str:
    """A drawing under its title; `notes` are words beside it."""
    said = "".join(f"<span>{escape(note)}</span>" for note in notes if note)
    opening = f'<figure class="{kind}">' if kind else "<figure>"
    return f"{opening}<figcaption>{escape(title)}{said}</figcaption>{drawing}</figure>"
