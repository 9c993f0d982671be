"""`report.html` of a run: one self-contained file that is good to read in light and dark, on a screen and on paper.

Made from the run directory alone, at any time: a run that failed, is still going on, or has not begun has one too.
Drawings are inline SVG (`charts.py`, `calibration.py`), many members of one run are `ensemble.py`, the rounds of a
federation `federation.py`; the look is `report.css`; there is no script. No torch.
"""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from core.ensemble.spread import Point, band
from core.errors import DataError, ResourceError
from core.storage.atomic import replace_text
from core.storage.lines import Record
from core.storage.store import Run, read_run
from hanse.format import duration, number
from hanse.report import ensemble, federation
from hanse.report.calibration import calibration
from hanse.report.charts import SMALL, Points, Series, escape, heat_map, line_chart
from hanse.report.federation import SPLITS, Rounds
from hanse.report.words import document, is_number, mapping, named, plain, rough, table, tile, written

# Metrics that head a report, the first that a run has
HEADLINES = ("accuracy", "perplexity", "r2", "loss")
# Small charts, each the first of its names that the run has
CHARTS = (
    ("accuracy", "perplexity", "r2"),
    ("roc_auc", "bits_per_byte", "rmse", "token_accuracy"),
    ("tokens_per_s", "examples_per_s"),
    ("lr",),
    ("grad_norm",),
    ("mfu", "memory_bytes"),
)
FROM_ZERO = ("tokens_per_s", "examples_per_s", "mfu", "memory_bytes")  # where a small ripple must look small
ALARMS = ("failed", "rejected", "killed", "warning")
UNTOLD = ("split", "steps", "rounds", "time", "eta_s")  # in no table of records
MAX_ROWS = 200  # of a table; the files hold the rest
MAX_CLASSES = 40  # drawn as a matrix
MAX_LINES = 12  # members whose curves are drawn one by one, beside their mean


@dataclass(frozen=True)
class _Page:
    """What a report is made from; `problems` are the files that could not be read. bands: the curves of a run with many
    members, by split and metric."""

    run: Run
    config: str
    metrics: list[Record]
    events: list[Record]
    summary: Record
    problems: list[str]
    bands: Mapping[tuple[str, str], list[Point]] = field(default_factory=dict)

    @cached_property
    def rounds(self) -> Rounds | None:
        """What the rounds of a federation say; None of any other run."""
        return Rounds.of(self.metrics) if str(self.run.record.get("verb")).startswith("federate") else None

    def series(self, name: str, split: str, smooth: bool = False) -> Series:
        """One metric of one split over steps, the mean where there are members; a value that is not a number is NaN."""
        if points := self.bands.get((split, name)):
            seen = [r[name] for r in self.metrics if r.get("split") == split and is_number(r.get(name))]
            low, high = min(seen), max(seen)  # no member was beyond: an accuracy of 1.01 would be nonsense
            edges = tuple((max(low, p.mean - p.std), min(high, p.mean + p.std)) for p in points)
            return Series(split, [(float(p.step), p.mean) for p in points], smooth, edges)
        return Series(split, self._points(name, split, self.metrics), smooth)

    def lines(self, name: str, split: str) -> tuple[Points, ...]:
        """The curve of each member, where they are few."""
        by_member: dict[str, list[Record]] = {}
        for record in self.metrics:
            if isinstance(record.get("member"), str):
                by_member.setdefault(record["member"], []).append(record)
        if len(by_member) > MAX_LINES or (split, name) not in self.bands:
            return ()
        return tuple(self._points(name, split, records) for records in by_member.values())

    @staticmethod
    def _points(name: str, split: str, records: Sequence[Record]) -> Points:
        """In order of step; the last record of a step counts."""
        points = {}
        for record in records:
            if record.get("split") == split and name in record and is_number(record.get("step")):
                value = record[name]
                points[float(record["step"])] = float(value) if is_number(value) else math.nan
        return sorted(points.items())

    def last(self, name: str, split: str) -> float | None:
        """The newest value of a metric that is a number."""
        finite = self.series(name, split).finite
        return finite[-1][1] if finite else None


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into a run directory and returns its path.

    Raises DataError if the directory holds no readable run, ResourceError if the file cannot be written.
    """
    path = Path(run_dir) / "report.html"
    try:
        replace_text(path, render(read_run(Path(run_dir))))
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}; free space, or check permissions") from error
    return path


def evaluation_page(title: str, summary: Mapping[str, Any]) -> str:
    """One page of what `hanse evaluate` found: the fields of `hanse.inference.Evaluation`, and `model`."""
    scores, members = mapping(summary.get("metrics")), mapping(summary.get("members"))
    split, voices = str(summary["split"]), summary["voices"]
    if members:
        summary = {**summary, "ensemble": {"metrics": scores, "members": len(members)}}
    name = next((name for name in HEADLINES if is_number(scores.get(name))), None)
    tiles = [] if name is None else ensemble.headline(summary, name) or _score_tiles(scores, name, split)
    tiles += [tile("examples", number(summary["examples"]))] + ([tile("voices", number(voices))] if voices > 1 else [])
    head = (
        f'<header><h1>{escape(title)}</h1><p class="about">{escape(summary["model"])} · {escape(summary["source"])}</p>'
        f'<dl class="tiles">{"".join(tiles)}</dl></header>'
    )
    sure = calibration(mapping(summary.get("uncertainty")), f"on {split}")
    return document(title, [head, sure, _classes(summary), _scores(summary), "<footer>Hanse</footer>"])


def render(run: Run) -> str:
    """The whole page. A file of the run that is damaged is named on it instead of shown."""
    problems: list[str] = []

    def read(part: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return part()
        except DataError as error:
            problems.append(str(error).replace(f"{run.path}/", ""))
            return otherwise

    metrics, events, summary = read(run.metrics, []), read(run.events, []), read(run.summary, {})
    page = _Page(run, run.config(), metrics, events, summary, problems, band(_ended_together(metrics)))
    results = [_classes(summary), _certainty(summary), _samples(page), _scores(summary), _members(summary)]
    history = [_events(page), _origin(page), _numbers(page), _footer(page)]
    learned = [_curves(page)]
    if page.rounds is not None:
        learned = federation.sections(page.rounds, events, run.path)
    return document(run.id, [_header(page), *learned, *results, *history])


def _ended_together(records: Sequence[Record]) -> list[Record]:
    """Members that stopped early were tested early; their test scores belong to one point all the same."""
    steps = [r["step"] for r in records if r.get("split") == "test" and is_number(r.get("step"))]
    return [{**r, "step": max(steps)} if r.get("split") == "test" and steps else r for r in records]


# --- head ----------------------------------------------------------------------------------------------------------


def _header(page: _Page) -> str:
    record, status = page.run.record, page.run.status
    data, workers = mapping(record.get("data")), record.get("workers")
    began = _time(record.get("start"))
    about = [
        str(record.get("verb", "")),
        str(data.get("path", "")),
        ensemble.repeat_of(page.summary),
        federation.about(page.events),
        f"{workers} workers" if is_number(workers) and workers else "",
        f"seed {record['seed']}" if "seed" in record else "",
        f"{began:%Y-%m-%d %H:%M}" if began else "",
    ]
    errors = [str(record["error"])] if record.get("error") else []
    banners = [f'<p class="error">{escape(text)}</p>' for text in errors + page.problems]
    return (
        f'<header><div class="top"><h1>{escape(page.run.id)}</h1>'
        f'<span class="status {escape(status)}">{escape(status)}</span></div>'
        f'<p class="about">{escape(" · ".join(filter(None, about)))}</p>{"".join(banners)}{_tiles(page)}</header>'
    )


def _tiles(page: _Page) -> str:
    tiles = _scored(page) if page.rounds is None else federation.tiles(page.rounds, page.summary)
    tiles += _effort(page)
    return (
        f'<dl class="tiles">{"".join(tiles)}</dl>' if tiles else '<p class="empty">Nothing has been measured yet.</p>'
    )


def _scored(page: _Page) -> list[str]:
    """How good the model is, and at its best."""
    summary, tiles = page.summary, []
    scores = mapping(summary.get("metrics"))
    split = str(summary.get("split", "test"))
    name = next((name for name in HEADLINES if is_number(scores.get(name))), None)
    if name is None:  # not at its end: what is known so far
        split = next(
            (s for s in ("validation", "train") if any(page.last(n, s) is not None for n in HEADLINES)), "train"
        )
        scores = {n: page.last(n, split) for n in HEADLINES}
        name = next((n for n in HEADLINES if scores[n] is not None), None)
    if name is not None:
        tiles += ensemble.headline(summary, name) or _score_tiles(scores, name, split)
    best = mapping(summary.get("best"))
    if is_number(best.get("value")):
        metric = str(best.get("metric", "loss"))
        note = f"at step {number(best['step'])}" if is_number(best.get("step")) else ""
        tiles.append(tile(f"best {named(metric)}", written(metric, best["value"]), note))
    return tiles


def _score_tiles(scores: Mapping[str, Any], name: str, split: str) -> list[str]:
    tiles = [tile(f"{split} {named(name)}", written(name, scores[name]), lead=split)]
    if name != "loss" and is_number(scores.get("loss")):
        tiles.append(tile(f"{split} loss", written("loss", scores["loss"])))
    return tiles


def _effort(page: _Page) -> list[str]:
    """What it took: steps, time, parameters, speed."""
    tiles = []
    steps = page.summary.get("steps", max((r["step"] for r in page.metrics if is_number(r.get("step"))), default=None))
    planned = next((r["steps"] for r in reversed(page.metrics) if is_number(r.get("steps"))), None)
    if is_number(steps):
        tiles.append(tile("steps", number(steps), f"of {number(planned)}" if planned and planned > steps else ""))
    began, ended = _time(page.run.record.get("start")), _time(page.run.record.get("end"))
    wall = page.summary.get("wall_s", (ended - began).total_seconds() if began and ended else None)
    if is_number(wall):
        tiles.append(tile("time", f"{wall:.1f} <small>s</small>" if wall < 60 else duration(wall)))
    if is_number(parameters := page.summary.get("parameters")):
        tiles.append(tile("parameters", rough(parameters)))
    for name in ("tokens_per_s", "examples_per_s"):
        if speeds := [value for _, value in page.series(name, "train").finite]:
            tiles.append(tile("median speed", rough(statistics.median(speeds)), f"{name.removesuffix('_per_s')}/s"))
            break
    return tiles


# --- curves --------------------------------------------------------------------------------------------------------


def _curves(page: _Page) -> str:
    losses = [page.series("loss", split, smooth=split == "train") for split in SPLITS]
    if not any(s.points for s in losses):
        return ""
    losses = [replace(s, members=page.lines("loss", s.split)) for s in losses]
    chart = line_chart("Loss", losses, marks=_marks(page), gap=not page.bands)
    note = _band_note(page) if page.bands else _gap_note(losses)
    caption = f"<figcaption>Loss{note}</figcaption>"
    parts = [f'<h2>Learning curves</h2>\n<figure class="scroll wide">{caption}{chart}</figure>']
    small = []
    for names in CHARTS:
        for name in names:
            noisy = name in ("grad_norm", "tokens_per_s", "examples_per_s", "mfu")
            series = [page.series(name, split, smooth=noisy) for split in SPLITS]
            if any(s.finite for s in series):
                small.append(_small_chart(name, [s for s in series if s.points]))
                break
    parts.append(f'<div class="three">{"".join(small)}</div>')
    return "\n".join(parts)


def _small_chart(name: str, series: list[Series]) -> str:
    title, unit = named(name), ""
    if name == "memory_bytes":
        series, unit = [Series(s.split, [(x, y / 1e9) for x, y in s.points]) for s in series], "GB"
    title = title[:1].upper() + title[1:]
    splits = "" if {s.split for s in series} == {"train"} else ", ".join(s.split for s in series)
    note = f"<span>{escape(unit or splits)}</span>" if unit or splits else ""
    chart = line_chart(title, series, SMALL, from_zero=name in FROM_ZERO)
    return f"<figure><figcaption>{escape(title)}{note}</figcaption>{chart}</figure>"


def _marks(page: _Page) -> list[tuple[float, str]]:
    """Steps worth a line in the chart: the best one, and where the run was taken up again."""
    best = mapping(page.summary.get("best")).get("step")
    marks = [(float(best), f"best, step {number(best)}")] if is_number(best) and best else []
    for event in page.events:
        step = event.get("step")
        if event.get("event") in ("started", "resumed") and is_number(step) and step:
            marks.append((float(step), "resumed"))
    return list(dict.fromkeys(marks))[-6:]


def _band_note(page: _Page) -> str:
    count = max(point.members for points in page.bands.values() for point in points)
    thin = "; thin: each of them" if count <= MAX_LINES else ""
    return f"<span>mean of {count} members; shaded: ± 1 standard deviation{thin}</span>"


def _gap_note(losses: Sequence[Series]) -> str:
    by_split = {s.split: s.curve for s in losses}
    train, validation = by_split.get("train"), by_split.get("validation")
    notes = ["thin: each record; bold: moving mean"] if train and len(train) > 20 else []
    if train and validation:
        gap = validation[-1][1] - train[-1][1]
        notes.append(f"shaded: validation minus training, {gap:+.3g} at the end")
    return "".join(f"<span>{escape(note)}</span>" for note in notes)


# --- results -------------------------------------------------------------------------------------------------------


def _classes(summary: Mapping[str, Any]) -> str:
    """Confusion matrix and scores by class."""
    details = mapping(summary.get("details"))
    matrix = details.get("confusion")
    if not _is_matrix(matrix):
        return ""
    classes = [str(name) for name in details.get("classes") or range(len(matrix))]
    if len(classes) != len(matrix):
        classes = [str(i) for i in range(len(matrix))]
    split = escape(summary.get("split", "test"))
    left = "" if len(matrix) > MAX_CLASSES else heat_map(matrix, classes)
    return (
        f'<h2>Classes <span class="about">on {split}</span></h2>\n<div class="two">'
        f"<figure><figcaption>Confusion matrix<span>color: share of the true class</span></figcaption>"
        f'{left}<p class="note">{escape(_mistakes(matrix, classes))}</p></figure>'
        f'<div class="card scroll">{_class_table(matrix, classes)}</div></div>'
    )


def _mistakes(matrix: Sequence[Sequence[float]], classes: Sequence[str]) -> str:
    wrong = [(row[j], i, j) for i, row in enumerate(matrix) for j in range(len(row)) if i != j and row[j]]
    if not wrong:
        return "No mistakes."
    most = sorted(wrong, key=lambda item: (-item[0], item[1:]))[:3]
    said = "; ".join(f"{classes[i]} taken for {classes[j]} ({count:g})" for count, i, j in most)
    return f"{sum(count for count, _, _ in wrong):g} mistakes, most often {said}."


def _class_table(matrix: Sequence[Sequence[float]], classes: Sequence[str]) -> str:
    rows = []
    for i, name in enumerate(classes):
        hits, support, predicted = matrix[i][i], sum(matrix[i]), sum(row[i] for row in matrix)
        scores = [hits / n if n else 0.0 for n in (predicted, support, (support + predicted) / 2)]
        rows.append((scores[2], [name, *(f"{score:.3f}" for score in scores), f"{support:g}"]))
    shown = rows if len(rows) <= MAX_CLASSES else sorted(rows)[:MAX_CLASSES]
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td class=n>{escape(c)}</td>" for c in cells)}'
        f'<td class="bar"><span style="width:{100 * f1:.1f}%"></span></td></tr>'
        for f1, (name, *cells) in shown
    )
    head = "".join(f'<th class="n" scope="col">{name}</th>' for name in ("precision", "recall", "F1", "examples"))
    note = f'<p class="note">The {MAX_CLASSES} of {len(rows)} with the lowest F1.</p>' if len(rows) > len(shown) else ""
    head = f'<thead><tr><th scope="col">class</th>{head}<th></th></tr></thead>'
    return f'<table class="classes">{head}<tbody>{body}</tbody></table>{note}'


def _certainty(summary: Mapping[str, Any]) -> str:
    """How sure the members of an ensemble are together."""
    together = mapping(summary.get("ensemble"))
    examples = f"{number(together['examples'])} examples" if isinstance(together.get("examples"), int) else ""
    split = f"the ensemble, on {together.get('split', 'test')}"
    return calibration(mapping(together.get("uncertainty")), ", ".join(filter(None, (split, examples))))


def _members(summary: Mapping[str, Any]) -> str:
    scores = mapping(summary.get("metrics"))
    return ensemble.members(summary, next((name for name in HEADLINES if name in scores), "loss"))


def _samples(page: _Page) -> str:
    samples = [s for s in page.summary.get("samples") or [] if isinstance(s, dict)]
    if not samples:
        return ""
    texts = "".join(
        f'<p class="sample"><b>{escape(s.get("prompt", ""))}</b>{escape(s.get("text", ""))}</p>' for s in samples
    )
    return f'<h2>Samples <span class="about">the prompt in color</span></h2>\n<div class="card">{texts}</div>'


def _scores(summary: Mapping[str, Any]) -> str:
    """All metrics of the final evaluation, and the errors' size for real values."""
    if mapping(summary.get("spread")):
        return ensemble.scores(summary)
    scores = mapping(summary.get("metrics"))
    if not scores:
        return ""
    split = escape(summary.get("split", "test"))
    rows = [(named(name), written(name, value)) for name, value in scores.items()]
    half = (len(rows) + 1) // 2
    tables = [table(part, numeric=True) for part in (rows[:half], rows[half:]) if part]
    cards = "".join(f'<div class="card">{table}</div>' for table in tables)
    return f'<h2>Scores <span class="about">on {split}</span></h2>\n<div class="two">{cards}</div>'


# --- how it came about ---------------------------------------------------------------------------------------------


def _events(page: _Page) -> str:
    events = federation.others(page.events)
    if not events:
        return ""
    rows = []
    for event in events[-MAX_ROWS:]:
        name = str(event.get("event", ""))
        tone = "failed" if "failed" in name else "warned" if any(alarm in name for alarm in ALARMS) else ""
        at = event.get("time")
        clock = datetime.fromtimestamp(at).strftime("%H:%M:%S") if is_number(at) else ""
        rest = ", ".join(f"{named(k)} {plain(v)}" for k, v in event.items() if k not in ("event", "time"))
        rows.append(
            f'<tr><th>{clock}</th><td class="{tone}">{escape(name.replace("_", " "))}</td><td>{escape(rest)}</td></tr>'
        )
    left_out = len(events) - len(rows)
    note = f'<p class="note">{left_out} earlier ones are in events.jsonl.</p>' if left_out else ""
    table = f'<table class="log"><tbody>{"".join(rows)}</tbody></table>'
    return f'<h2>Events</h2>\n<div class="card scroll">{table}{note}</div>'


def _origin(page: _Page) -> str:
    """Config and environment side by side."""
    shown = {"id", "verb", "status", "error"}  # stand in the header
    rows = []
    for key, value in page.run.record.items():
        if key in shown or value in (None, "", {}, []):
            continue
        if key == "command" and isinstance(value, list):
            value = " ".join(map(str, value))
        rows += [(f"{named(key)} {k}", plain(v)) for k, v in value.items()] if isinstance(value, dict) else []
        rows += [] if isinstance(value, dict) else [(named(key), plain(value))]
    config = re.sub(r"(?m)^([ \-]*)([\w.]+):", r"\1<b>\2</b>:", escape(page.config))
    left = f'<figure><figcaption>Config</figcaption><pre tabindex="0">{config}</pre></figure>' if config else ""
    right = f"<figure><figcaption>Environment</figcaption>{table([(k, escape(v)) for k, v in rows])}</figure>"
    return f'<h2>How it was made</h2>\n<div class="two">{left}{right}</div>'


def _numbers(page: _Page) -> str:
    """The curves as tables, for those who cannot see them or want the digits."""
    parts = []
    for split in SPLITS:
        records = _means(page, split) or [r for r in page.metrics if r.get("split") == split]
        names = [n for n in dict.fromkeys(n for r in records for n in r) if n not in UNTOLD]
        names = [n for n in names if any(is_number(r.get(n)) for r in records)]
        if not records or not names:
            continue
        every = math.ceil(len(records) / MAX_ROWS)
        shown = records[::-every][::-1]
        head = "".join(f'<th class="n" scope="col">{escape(named(n))}</th>' for n in names)
        body = "".join(f"<tr>{''.join(f'<td class=n>{written(n, r.get(n))}</td>' for n in names)}</tr>" for r in shown)
        kind = "means over members" if page.bands else "records"
        title = f"{len(records)} {split} {kind}" + (f", every {every}th" if every > 1 else "")
        parts.append(
            f"<details><summary>{escape(title)} as a table</summary>"
            f'<div class="card scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div></details>"
        )
    return "\n".join(parts)


def _means(page: _Page, split: str) -> list[Record]:
    """Of a run with members: one record per step, each metric's mean and standard deviation."""
    records: dict[int, Record] = {}
    for (of, name), points in page.bands.items():
        for point in points if of == split else ():
            records.setdefault(point.step, {"step": point.step}).update({name: point.mean, f"{name} std": point.std})
    return [records[step] for step in sorted(records)]


def _footer(page: _Page) -> str:
    digest = mapping(page.run.record.get("data")).get("sha256")
    weights = page.summary.get("weights_sha256")
    facts = [f"data {digest}" if digest else "", f"weights {weights}" if weights else ""]
    return f"<footer>{escape(' · '.join(filter(None, ['Hanse', *facts])))}</footer>"


def _is_matrix(value: object) -> TypeGuard[list[list[float]]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, list) and len(row) == len(value) and all(map(is_number, row)) for row in value)
    )


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:  # written by hand; it is shown as it stands in the environment
        return None
