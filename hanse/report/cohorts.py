"""Who took part in a federation, drawn: one row per client, one column per round, the color its loss in that round.

Made from the `cohort` records of metrics.jsonl and the events of clients that failed. Of many clients those that took
part most often are drawn; of many rounds, neighbors share a column.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hanse.format import number
from hanse.report.charts import escape, svg
from hanse.report.words import is_number, mapping

Record = Mapping[str, Any]
MAX_CLIENTS = 60  # rows
MAX_COLUMNS = 120
LEFT, TOP, LEGEND = 58.0, 8.0, 62.0  # SVG units
FAILURES = ("client_failed", "quarantined")


class Absence(NamedTuple):
    """One client in one round that does not count, and why. kind: `failed`, `quarantined` or `lost`."""

    client: int
    round: int
    kind: str
    reason: str
    traceback: str = ""


@dataclass
class _Cell:
    """What a client did in the rounds of one column."""

    losses: list[float] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)

    @property
    def loss(self) -> float | None:
        return sum(self.losses) / len(self.losses) if self.losses else None


def absences(cohorts: Iterable[Record], events: Iterable[Record]) -> list[Absence]:
    """All of them, in order of rounds. What was done twice, before and after a run was killed, counts once."""
    found: dict[Absence, None] = {}
    for event in events:
        name, round, client = (event.get(key) for key in ("event", "round", "client"))
        if name in FAILURES and isinstance(round, int) and isinstance(client, int):
            kind = str(name).removeprefix("client_")
            found[Absence(client, round, kind, str(event.get("reason", "")), str(event.get("traceback", "")))] = None
    for record in cohorts:
        lost = record.get("lost")
        for entry in lost if isinstance(lost, list) else []:
            if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], int):
                found[Absence(entry[0], record["round"], "lost", str(entry[1]))] = None
    return sorted(found, key=lambda absence: (absence.round, absence.client))


def cohort_map(cohorts: Sequence[Record], away: Sequence[Absence]) -> str:
    """The figure; empty if nobody ever took part. cohorts: the records, each with an integer `round`."""
    last = max((record["round"] for record in cohorts), default=0)
    width = max(1, math.ceil(last / MAX_COLUMNS))
    cells = _cells(cohorts, away, width)
    if not cells:
        return ""
    took_part = Counter(client for client, _ in cells)
    shown = sorted(sorted(took_part, key=lambda client: (-took_part[client], client))[:MAX_CLIENTS])
    notes = ["color: loss in the round"]
    if len(took_part) > len(shown):
        notes.append(f"the {len(shown)} of {len(took_part):,} clients that took part most often")
    if width > 1:
        notes.append(f"{width} rounds to a column")
    caption = "".join(f"<span>{escape(note)}</span>" for note in notes)
    drawing = _drawing(cells, shown, last, width)
    return f'<figure class="scroll"><figcaption>Clients by round{caption}</figcaption>{drawing}</figure>'


def _cells(cohorts: Sequence[Record], away: Sequence[Absence], width: int) -> dict[tuple[int, int], _Cell]:
    """(client, column) -> what it did there."""
    cells: dict[tuple[int, int], _Cell] = defaultdict(_Cell)
    for record in cohorts:
        columns, column = mapping(record.get("cohort")), (record["round"] - 1) // width
        clients, losses = columns.get("client"), columns.get("loss")
        if not isinstance(clients, list) or not isinstance(losses, list):
            continue
        for client, loss in zip(clients, losses, strict=False):
            if isinstance(client, int):
                cell = cells[client, column]
                cell.losses += [float(loss)] if is_number(loss) else []
    for absence in away:
        place = absence.client, (absence.round - 1) // width
        if absence.kind == "lost" or place in cells:  # one that only failed to judge took no part
            cells[place].absences.append(absence)
    return dict(cells)


def _drawing(cells: Mapping[tuple[int, int], _Cell], shown: Sequence[int], last: int, width: int) -> str:
    columns = math.ceil(last / width)
    across = min(26.0, max(7.0, 960 / columns))
    down = 20.0 if len(shown) <= 20 else 15.0 if len(shown) <= 40 else 11.0
    right, bottom = LEFT + across * columns, TOP + down * len(shown)
    drawn = set(shown)
    losses = (cell.loss for (client, _), cell in cells.items() if client in drawn)
    shade = _Shade.of(sorted(loss for loss in losses if loss is not None))
    parts = [f'<rect class="asked" x="{LEFT:g}" y="{TOP:g}" width="{right - LEFT:.1f}" height="{bottom - TOP:.1f}"/>']
    every = math.ceil(13 / down)
    for row, client in enumerate(shown):
        y = TOP + down * row
        if row % every == 0:
            parts.append(f'<text x="{LEFT - 7:g}" y="{y + down / 2 + 4:.1f}" text-anchor="end">{client}</text>')
        for column in range(columns):
            if cell := cells.get((client, column)):
                rounds = _rounds(column * width + 1, min(last, (column + 1) * width))
                parts.append(_cell(cell, (LEFT + across * column, y), (across, down), shade, f"{client}, {rounds}"))
    step = math.ceil(columns / max(1, (right - LEFT) // 48))
    for column in range(0, columns, step):
        x = LEFT + across * (column + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{column * width + 1}</text>')
    parts.append(f'<text x="{LEFT - 7:g}" y="{bottom + 16:.1f}" text-anchor="end">round</text>')
    parts.append(_legend(shade, bottom + 40))
    size = (max(right, LEFT + 520) + 4, bottom + LEGEND)
    return svg("Clients by round", _words(cells, shown, last), size, "".join(parts), "matrix")


@dataclass(frozen=True)
class _Shade:
    """From a loss to how strong its color is: by the logarithm, where all are above 0."""

    low: float
    high: float

    @classmethod
    def of(cls, losses: Sequence[float]) -> "_Shade":
        """losses: in order. The highest and the lowest fiftieth may lie beyond: one peak must not fade the others."""
        if not losses:
            return cls(math.nan, math.nan)
        cut = len(losses) // 50
        return cls(losses[cut], losses[-1 - cut])

    def __call__(self, loss: float) -> float:
        low, high = self.low, self.high
        if low > 0:
            low, high, loss = math.log(low), math.log(high), math.log(max(loss, low))
        share = (loss - low) / (high - low) if high > low else 0.5
        return 0.1 + 0.82 * min(1.0, max(0.0, share))


def _cell(cell: _Cell, at: tuple[float, float], size: tuple[float, float], shade: _Shade, where: str) -> str:
    (x, y), (width, height) = at, (size[0] - 1, size[1] - 1)
    said = [] if cell.loss is None else [f"loss {number(cell.loss)}"]
    said += list(dict.fromkeys(f"{a.kind}: {a.reason}" for a in cell.absences))
    said = said or ["no loss"]
    strength = 0.0 if cell.loss is None else shade(cell.loss)
    area = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill-opacity="{strength:.2f}"'
    title = f"<title>client {escape(where)}: {escape('; '.join(said))}</title>"
    failed = any(absence.kind != "lost" for absence in cell.absences) or said == ["no loss"]
    mark = _cross if failed else _ring if cell.absences else None
    drawn = mark(x + width / 2, y + height / 2, min(width, height) / 4) if mark else ""
    return (
        f'<g><rect class="cell" {area}>{title}</rect>{drawn}</g>'
        if drawn
        else f'<rect class="cell" {area}>{title}</rect>'
    )


def _cross(x: float, y: float, r: float) -> str:
    d = f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}m0 {-2 * r:.1f}l{-2 * r:.1f} {2 * r:.1f}"
    return f'<path class="lost" pointer-events="none" d="{d}"/>'


def _ring(x: float, y: float, r: float) -> str:
    return f'<circle class="away" pointer-events="none" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'


def _legend(shade: _Shade, y: float) -> str:
    """Colors with the losses at their ends, and the two marks."""
    parts, x = [], LEFT
    if math.isfinite(shade.low):
        words = f"loss {number(shade.low)}"
        parts.append(f'<text x="{x:g}" y="{y + 4:.1f}">{words}</text>')
        x += 7.0 * len(words) + 6
        for i in range(5):
            strength = 0.1 + 0.82 * i / 4
            parts.append(
                f'<rect class="cell" x="{x + 18 * i:.1f}" y="{y - 6:.1f}" width="17" height="12"'
                f' fill-opacity="{strength:.2f}"/>'
            )
        parts.append(f'<text x="{x + 97:.1f}" y="{y + 4:.1f}">{number(shade.high)}</text>')
        x += 170
    parts += [_cross(x, y, 4), f'<text x="{x + 12:.1f}" y="{y + 4:.1f}">failed or quarantined</text>']
    parts += [_ring(x + 168, y, 4), f'<text x="{x + 180:.1f}" y="{y + 4:.1f}">asked, but lost</text>']
    return "".join(parts)


def _words(cells: Mapping[tuple[int, int], _Cell], shown: Sequence[int], last: int) -> str:
    away = [absence for cell in cells.values() for absence in cell.absences]
    lost = sum(absence.kind == "lost" for absence in away)
    failed = len(away) - lost
    return f"{len(shown)} clients in {last} rounds; {failed} times one failed or was quarantined, {lost} times lost"


def _rounds(first: int, last: int) -> str:
    return f"round {first}" if first == last else f"rounds {first} to {last}"
