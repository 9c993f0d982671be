"""`report.html` of a run: one self-contained file that is good to read in light and dark, on a screen and on paper.

Made from the run directory alone, at any time: a run that failed, is still going on, or has not begun has one too.
Curves and matrix are inline SVG (`report_charts.py`), the look is `report.css`; there is no script. No torch.
"""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard

from core.errors import DataError, ResourceError
from core.storage.atomic import replace_text
from core.storage.store import Record, Run, read_run
from hanse.format import duration, number, percent, size
from hanse.report_charts import SMALL, Series, escape, heat_map, line_chart

SPLITS = ("train", "validation", "test")
# Metrics that head a report, the first that a run has; and how they are written out
HEADLINES = ("accuracy", "perplexity", "r2", "loss")
NAMES = {
    "r2": "R²", "mae": "mean absolute error", "rmse": "root mean squared error", "roc_auc": "ROC AUC",
    "lr": "learning rate", "grad_norm": "gradient norm", "examples_per_s": "examples per second",
    "tokens_per_s": "tokens per second", "memory_bytes": "memory", "mfu": "model FLOPs utilization",
}  # fmt: skip
SHARES = ("accuracy", "balanced_accuracy", "token_accuracy", "mfu")  # shown in percent
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
MAX_ROWS = 200  # of a table; the files hold the rest
MAX_CLASSES = 40  # drawn as a matrix


@dataclass(frozen=True)
class _Page:
    """What a report is made from; `problems` are the files that could not be read."""

    run: Run
    config: str
    metrics: list[Record]
    events: list[Record]
    summary: Record
    problems: list[str]

    def series(self, name: str, split: str, smooth: bool = False) -> Series:
        """One metric of one split over steps; a value that is not a number is NaN. The last record of a step counts."""
        points = {}
        for record in self.metrics:
            if record.get("split") == split and name in record and _is_number(record.get("step")):
                value = record[name]
                points[float(record["step"])] = float(value) if _is_number(value) else math.nan
        return Series(split, sorted(points.items()), smooth)

    def last(self, name: str, split: str) -> float | None:
        """The newest value of a metric that is a number."""
        finite = self.series(name, split).finite
        return finite[-1][1] if finite else None


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into a run directory and returns its path.

    Raises DataError if the directory holds no readable run, ResourceError if the file cannot be written.
    """
    path = Path(run_dir) / "report.html"
    text = render(read_run(Path(run_dir)))
    try:
        replace_text(path, text)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}; free space, or check permissions") from error
    return path


def render(run: Run) -> str:
    """The whole page. A file of the run that is damaged is named on it instead of shown."""
    problems: list[str] = []

    def read(part: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return part()
        except DataError as error:
            problems.append(str(error).replace(f"{run.path}/", ""))
            return otherwise

    page = _Page(run, run.config(), read(run.metrics, []), read(run.events, []), read(run.summary, {}), problems)
    sections = [_header, _curves, _classes, _samples, _scores, _events, _origin, _numbers]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(run.id)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, (section(page) for section in sections)))
        + f"\n{_footer(page)}\n</main>\n</body>\n</html>\n"
    )


# --- head ----------------------------------------------------------------------------------------------------------


def _header(page: _Page) -> str:
    record, status = page.run.record, page.run.status
    data, workers = _mapping(record.get("data")), record.get("workers")
    began = _time(record.get("start"))
    about = [
        str(record.get("verb", "")),
        str(data.get("path", "")),
        f"{workers} workers" if _is_number(workers) and workers else "",
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
    summary, tiles = page.summary, []
    scores = _mapping(summary.get("metrics"))
    split = str(summary.get("split", "test"))
    name = next((name for name in HEADLINES if _is_number(scores.get(name))), None)
    if name is None:  # not at its end: what is known so far
        split = next(
            (s for s in ("validation", "train") if any(page.last(n, s) is not None for n in HEADLINES)), "train"
        )
        scores = {n: page.last(n, split) for n in HEADLINES}
        name = next((n for n in HEADLINES if scores[n] is not None), None)
    if name is not None:
        tiles.append(_tile(f"{split} {_named(name)}", _value(name, scores[name]), lead=split))
        if name != "loss" and _is_number(scores.get("loss")):
            tiles.append(_tile(f"{split} loss", _value("loss", scores["loss"])))
    best = _mapping(summary.get("best"))
    if _is_number(best.get("value")):
        metric = str(best.get("metric", "loss"))
        note = f"at step {number(best['step'])}" if _is_number(best.get("step")) else ""
        tiles.append(_tile(f"best {_named(metric)}", _value(metric, best["value"]), note))
    tiles += _effort(page)
    return (
        f'<dl class="tiles">{"".join(tiles)}</dl>' if tiles else '<p class="empty">Nothing has been measured yet.</p>'
    )


def _effort(page: _Page) -> list[str]:
    """What it took: steps, time, parameters, speed."""
    tiles = []
    steps = page.summary.get("steps", max((r["step"] for r in page.metrics if _is_number(r.get("step"))), default=None))
    planned = next((r["steps"] for r in reversed(page.metrics) if _is_number(r.get("steps"))), None)
    if _is_number(steps):
        tiles.append(_tile("steps", number(steps), f"of {number(planned)}" if planned and planned > steps else ""))
    began, ended = _time(page.run.record.get("start")), _time(page.run.record.get("end"))
    wall = page.summary.get("wall_s", (ended - began).total_seconds() if began and ended else None)
    if _is_number(wall):
        tiles.append(_tile("time", f"{wall:.1f} <small>s</small>" if wall < 60 else duration(wall)))
    if _is_number(parameters := page.summary.get("parameters")):
        tiles.append(_tile("parameters", _rough(parameters)))
    for name in ("tokens_per_s", "examples_per_s"):
        if speeds := [value for _, value in page.series(name, "train").finite]:
            tiles.append(_tile("median speed", _rough(statistics.median(speeds)), f"{name.removesuffix('_per_s')}/s"))
            break
    return tiles


def _tile(label: str, value: str, note: str = "", lead: str = "") -> str:
    kind = f"tile lead {escape(lead)}" if lead else "tile"
    below = f"<p>{escape(note)}</p>" if note else ""
    return f'<div class="{kind}"><dt>{escape(label)}</dt><dd>{value}</dd>{below}</div>'


# --- curves --------------------------------------------------------------------------------------------------------


def _curves(page: _Page) -> str:
    losses = [page.series("loss", split, smooth=split == "train") for split in SPLITS]
    if not any(s.points for s in losses):
        return ""
    chart = line_chart("Loss", losses, marks=_marks(page), gap=True)
    caption = f"<figcaption>Loss{_gap_note(losses)}</figcaption>"
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
    title, unit = _named(name), ""
    if name == "memory_bytes":
        series, unit = [Series(s.split, [(x, y / 1e9) for x, y in s.points]) for s in series], "GB"
    title = title[:1].upper() + title[1:]
    splits = "" if {s.split for s in series} == {"train"} else ", ".join(s.split for s in series)
    note = f"<span>{escape(unit or splits)}</span>" if unit or splits else ""
    chart = line_chart(title, series, SMALL, from_zero=name in FROM_ZERO)
    return f"<figure><figcaption>{escape(title)}{note}</figcaption>{chart}</figure>"


def _marks(page: _Page) -> list[tuple[float, str]]:
    """Steps worth a line in the chart: the best one, and where the run was taken up again."""
    best = _mapping(page.summary.get("best")).get("step")
    marks = [(float(best), f"best, step {number(best)}")] if _is_number(best) and best else []
    for event in page.events:
        step = event.get("step")
        if event.get("event") in ("started", "resumed") and _is_number(step) and step:
            marks.append((float(step), "resumed"))
    return list(dict.fromkeys(marks))[-6:]


def _gap_note(losses: Sequence[Series]) -> str:
    by_split = {s.split: s.curve for s in losses}
    train, validation = by_split.get("train"), by_split.get("validation")
    notes = ["thin: each record; bold: moving mean"] if train and len(train) > 20 else []
    if train and validation:
        gap = validation[-1][1] - train[-1][1]
        notes.append(f"shaded: validation minus training, {gap:+.3g} at the end")
    return "".join(f"<span>{escape(note)}</span>" for note in notes)


# --- results -------------------------------------------------------------------------------------------------------


def _classes(page: _Page) -> str:
    """Confusion matrix and scores by class."""
    details = _mapping(page.summary.get("details"))
    matrix = details.get("confusion")
    if not _is_matrix(matrix):
        return ""
    classes = [str(name) for name in details.get("classes") or range(len(matrix))]
    if len(classes) != len(matrix):
        classes = [str(i) for i in range(len(matrix))]
    split = escape(page.summary.get("split", "test"))
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


def _samples(page: _Page) -> str:
    samples = [s for s in page.summary.get("samples") or [] if isinstance(s, dict)]
    if not samples:
        return ""
    texts = "".join(
        f'<p class="sample"><b>{escape(s.get("prompt", ""))}</b>{escape(s.get("text", ""))}</p>' for s in samples
    )
    return f'<h2>Samples <span class="about">the prompt in color</span></h2>\n<div class="card">{texts}</div>'


def _scores(page: _Page) -> str:
    """All metrics of the final evaluation, and the errors' size for real values."""
    scores = _mapping(page.summary.get("metrics"))
    if not scores:
        return ""
    split = escape(page.summary.get("split", "test"))
    rows = [(_named(name), _value(name, value)) for name, value in scores.items()]
    half = (len(rows) + 1) // 2
    tables = [_table(part, numeric=True) for part in (rows[:half], rows[half:]) if part]
    cards = "".join(f'<div class="card">{table}</div>' for table in tables)
    return f'<h2>Scores <span class="about">on {split}</span></h2>\n<div class="two">{cards}</div>'


# --- how it came about ---------------------------------------------------------------------------------------------


def _events(page: _Page) -> str:
    if not page.events:
        return ""
    rows = []
    for event in page.events[-MAX_ROWS:]:
        name = str(event.get("event", ""))
        tone = "failed" if "failed" in name else "warned" if any(alarm in name for alarm in ALARMS) else ""
        at = event.get("time")
        clock = datetime.fromtimestamp(at).strftime("%H:%M:%S") if _is_number(at) else ""
        rest = ", ".join(f"{_named(k)} {_plain(v)}" for k, v in event.items() if k not in ("event", "time"))
        rows.append(
            f'<tr><th>{clock}</th><td class="{tone}">{escape(name.replace("_", " "))}</td><td>{escape(rest)}</td></tr>'
        )
    left_out = len(page.events) - len(rows)
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
        rows += [(f"{_named(key)} {k}", _plain(v)) for k, v in value.items()] if isinstance(value, dict) else []
        rows += [] if isinstance(value, dict) else [(_named(key), _plain(value))]
    config = re.sub(r"(?m)^([ \-]*)([\w.]+):", r"\1<b>\2</b>:", escape(page.config))
    left = f'<figure><figcaption>Config</figcaption><pre tabindex="0">{config}</pre></figure>' if config else ""
    right = f"<figure><figcaption>Environment</figcaption>{_table([(k, escape(v)) for k, v in rows])}</figure>"
    return f'<h2>How it was made</h2>\n<div class="two">{left}{right}</div>'


def _numbers(page: _Page) -> str:
    """The curves as tables, for those who cannot see them or want the digits."""
    parts = []
    for split in SPLITS:
        records = [r for r in page.metrics if r.get("split") == split]
        names = [
            n for n in dict.fromkeys(n for r in records for n in r) if n not in ("split", "steps", "time", "eta_s")
        ]
        names = [n for n in names if any(_is_number(r.get(n)) for r in records)]
        if not records or not names:
            continue
        every = math.ceil(len(records) / MAX_ROWS)
        shown = records[::-every][::-1]
        head = "".join(f'<th class="n" scope="col">{escape(_named(n))}</th>' for n in names)
        body = "".join(f"<tr>{''.join(f'<td class=n>{_value(n, r.get(n))}</td>' for n in names)}</tr>" for r in shown)
        title = f"{len(records)} {split} records" + (f", every {every}th" if every > 1 else "")
        parts.append(
            f"<details><summary>{escape(title)} as a table</summary>"
            f'<div class="card scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div></details>"
        )
    return "\n".join(parts)


def _footer(page: _Page) -> str:
    digest = _mapping(page.run.record.get("data")).get("sha256")
    weights = page.summary.get("weights_sha256")
    facts = [f"data {digest}" if digest else "", f"weights {weights}" if weights else ""]
    return f"<footer>{escape(' · '.join(filter(None, ['Hanse', *facts])))}</footer>"


# --- words ---------------------------------------------------------------------------------------------------------


def _table(rows: Iterable[tuple[str, str]], numeric: bool = False) -> str:
    """Two columns; the second is HTML already."""
    kind = ' class="n"' if numeric else ""
    return f"<table>{''.join(f'<tr><th>{escape(k)}</th><td{kind}>{v}</td></tr>' for k, v in rows)}</table>"


def _named(key: str) -> str:
    return NAMES.get(key, key.replace("_", " "))


def _value(name: str, value: object) -> str:
    """A metric's value as it is written; a dash where it is not a number."""
    if not _is_number(value):
        return "-"
    if name in SHARES:
        return percent(value)
    if name.endswith("_bytes"):
        return size(value)
    return number(value)


def _rough(value: float) -> str:
    """Three digits are enough: 62.3 k, 1.24 M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale * 10 or (unit != "k" and value >= scale):
            return f"{value / scale:.3g} <small>{unit}</small>"
    return number(round(value))


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, float):
        return number(value)
    return str(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_matrix(value: object) -> TypeGuard[list[list[float]]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, list) and len(row) == len(value) and all(map(_is_number, row)) for row in value)
    )


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:  # written by hand; it is shown as it stands in the environment
        return None
