"""Charts as inline SVG: curves over steps or rounds, and a confusion matrix. No script, no font, no color of their own.

Colors come from the page's CSS by the name of a series (`train`, `validation`, `test`), so that one drawing serves both
schemes. Every drawing has a title and a description for those who do not see it.
"""

import html
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.printable import printable
from hanse.format import number

Points = list[tuple[float, float]]  # (step, value); the value may be NaN

MAX_POINTS = 400  # drawn per curve; more would only make the file larger
MAX_DOTS = 60  # a curve with more points has no dot at each of them


def escape(value: object) -> str:
    """Text that is safe between tags and in attributes."""
    return html.escape(printable(str(value), keep="\n\t"), quote=True)


@dataclass(frozen=True)
class Series:
    """One curve: its split names its color, if `color` does not. `smooth` draws a moving mean over the faint values.

    Of a curve that is a mean over members, `band` holds (low, high) around each of its points, `members` their curves.
    """

    split: str
    points: Points
    smooth: bool = False
    band: tuple[tuple[float, float], ...] = ()
    members: tuple[Points, ...] = ()
    color: str = ""

    @property
    def look(self) -> str:
        """The CSS class."""
        return f"s-{escape(self.color or self.split)}"

    @property
    def finite(self) -> Points:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if math.isfinite(y)]

    @property
    def typical(self) -> list[float]:
        """The values that the axis must hold: all, but of many noisy ones not the highest and lowest hundredth."""
        members = [y for points in self.members for _, y in points if math.isfinite(y)]
        values = sorted([y for _, y in self.finite] + members)
        cut = len(values) // 100 if self.smooth else 0
        edges = [y for edge in self.edges for _, y in edge]
        return values[cut : len(values) - cut] + [y for _, y in self.curve] + edges

    @property
    def curve(self) -> Points:
        """The line that is labeled: smoothed if the values are many and noisy."""
        return self._smoothed(self.finite)

    @property
    def edges(self) -> tuple[Points, Points] | tuple[()]:
        """The lower and the upper edge of the band, as smooth as the line."""
        if not self.band:
            return ()
        assert len(self.band) == len(self.points) == len(self.finite), "a band belongs to points that can be drawn"
        low, high = ([(x, edge[i]) for (x, _), edge in zip(self.points, self.band, strict=True)] for i in (0, 1))
        return self._smoothed(low), self._smoothed(high)

    @property
    def is_smoothed(self) -> bool:
        """Whether there is a mean to draw beside the values."""
        return self.smooth and len(self.finite) > 20

    def _smoothed(self, points: Points) -> Points:
        return _moving_mean(points, max(5, len(points) // 20)) if self.is_smoothed else points


@dataclass(frozen=True)
class Frame:
    """Size of a drawing and the room around the plot, in SVG units. axis: what x counts; `names` end the curves."""

    width: float = 1040
    height: float = 330
    left: float = 58
    right: float = 132
    top: float = 16
    bottom: float = 40
    axis: str = "step"
    names: bool = True

    @property
    def is_small(self) -> bool:
        """Whether there is room for a few ticks only."""
        return self.width < 500


SMALL = Frame(width=350, height=206, left=50, right=60, top=12, bottom=40, names=False)
HALF = Frame(width=520, height=262, left=50, right=126, top=12, bottom=40)


@dataclass(frozen=True)
class Scale:
    """Maps values onto pixels; logarithmic where a span of decades would flatten a curve."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log and value <= 0:
            return self.start
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        share = min(1.0, max(0.0, (value - low) / (high - low)))  # a rare peak ends at the edge
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Round values within the span, about `count` of them."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                ticks = [f * 10.0**d for d in decades for f in factors if self.low <= f * 10.0**d <= self.high]
                if len(ticks) <= count + 2:
                    return ticks
            return ticks[:: math.ceil(len(ticks) / count)]
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def line_chart(
    title: str,
    series: Sequence[Series],
    frame: Frame = Frame(),
    marks: Iterable[tuple[float, str]] = (),
    gap: bool = False,
    from_zero: bool = False,
) -> str:
    """Curves over steps as SVG; `marks` are labeled steps, `gap` shades what lies between train and
    validation, `from_zero` starts the axis there."""
    series = [s for s in series if s.points]
    values = [y for s in series for y in s.typical]
    if not values:
        return f'<p class="empty">{escape(title)}: no finite value yet.</p>'
    steps = [x for s in series for x, _ in s.points]
    x = Scale(*_widened(min(0, *steps), max(steps)), frame.left, frame.width - frame.right)
    y = _value_scale(values, frame, from_zero)
    parts = [_grid(x, y, frame)]
    parts += _marks([(x(step), label) for step, label in marks if x.low <= step <= x.high], frame)
    if gap:
        parts.append(_gap(series, x, y))
    parts += [_curve(s, x, y, frame) for s in series]
    parts.append(_end_labels(series, x, y, frame))
    kind = "small" if frame.is_small else ""
    return svg(title, _describe(series, frame.axis), (frame.width, frame.height), "".join(parts), kind)


def heat_map(matrix: Sequence[Sequence[float]], classes: Sequence[str]) -> str:
    """A confusion matrix as SVG: rows are the truth, columns the prediction; the color is the share of the row."""
    count = len(matrix)
    cell = max(14.0, min(60.0, 470 / count))
    longest = max(len(_short(name)) for name in classes)
    left, upright = 34 + 7.2 * longest, longest * 7.2 < cell
    top = 44 if upright else 34 + 7.2 * longest
    parts = [
        f'<text class="axis" x="{left + count * cell / 2:.1f}" y="14" text-anchor="middle">predicted</text>',
        f'<text class="axis" transform="translate(12 {top + count * cell / 2:.1f}) rotate(-90)"'
        ' text-anchor="middle">true</text>',
    ]
    for i, name in enumerate(classes):
        middle = (i + 0.5) * cell
        parts.append(_text(left - 8, top + middle + 4, _short(name), "end"))
        if upright:
            parts.append(_text(left + middle, top - 8, _short(name), "middle"))
        else:
            parts.append(
                f'<text class="tick" transform="translate({left + middle + 4:.1f} {top - 8:.1f}) rotate(-90)">'
                f"{escape(_short(name))}</text>"
            )
    for i, row in enumerate(matrix):
        total = sum(row) or 1
        for j, value in enumerate(row):
            where = (left + j * cell, top + i * cell, cell)
            parts.append(_cell(where, value, value / total, (classes[i], classes[j], i == j)))
    hits = sum(row[i] for i, row in enumerate(matrix))
    text = f"{hits:g} of {sum(map(sum, matrix)):g} on the diagonal; {count} classes"
    return svg("Confusion matrix", text, (left + count * cell + 4, top + count * cell + 4), "".join(parts), "matrix")


# --- parts of a line chart -----------------------------------------------------------------------------------------


def _grid(x: Scale, y: Scale, frame: Frame) -> str:
    bottom, end = frame.height - frame.bottom, frame.width - frame.right
    ticks = y.ticks(4 if frame.is_small else 6)
    lines = [
        f'<line class="grid" x1="{frame.left:g}" x2="{end:g}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        + _text(frame.left - 8, y(v) + 4, _tick(v, ticks), "end")
        for v in ticks
    ]
    steps = [v for v in x.ticks(4 if frame.is_small else 8) if v == int(v)]
    lines += [_text(x(v), bottom + 17, _tick(v, steps), "middle") for v in steps]
    lines.append(f'<line class="base" x1="{frame.left:g}" x2="{end:g}" y1="{bottom:g}" y2="{bottom:g}"/>')
    axis = escape(frame.axis)
    lines.append(f'<text class="axis" x="{end:g}" y="{frame.height - 6:g}" text-anchor="end">{axis}</text>')
    return "".join(lines)


def _marks(marks: Sequence[tuple[float, str]], frame: Frame) -> list[str]:
    """Dotted lines with words beside them, a line lower where they would run into the mark before."""
    parts, free, row = [], -math.inf, 0
    for x, label in sorted(marks):
        width = 12 + 6.5 * len(label)
        at, anchor = (x - 5, "end") if x + width > frame.width - frame.right + 40 else (x + 5, "start")
        row = row + 1 if (at - width if anchor == "end" else x) < free else 0
        free = x + width
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top:g}" y2="{frame.height - frame.bottom:g}"/>'
            f'<text class="axis" x="{at:.1f}" y="{frame.top + 9 + 15 * row:g}" text-anchor="{anchor}">'
            f"{escape(label)}</text>"
        )
    return parts


def _curve(series: Series, x: Scale, y: Scale, frame: Frame) -> str:
    name, finite = series.look, series.finite
    parts = [f'<path class="member {name}" d="{_path(_runs(points), x, y)}"/>' for points in series.members]
    if edges := series.edges:
        parts.append(f'<polygon class="band {name}" points="{_outline(*edges, x, y)}"/>')
    if series.is_smoothed:
        if not edges:
            parts.append(f'<path class="raw {name}" d="{_path(_runs(series.points), x, y)}"/>')
        parts.append(f'<path class="curve {name}" d="{_path([_thinned(series.curve)], x, y)}"/>')
    elif len(finite) > 1:
        parts.append(f'<path class="curve {name}" d="{_path(_runs(series.points), x, y)}"/>')
    if len(finite) <= MAX_DOTS and (series.split != "train" or len(finite) == 1):
        parts += [
            f'<circle class="dot {name}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="{2.6 if len(finite) > 1 else 4}">'
            f"<title>{escape(series.split)}, {escape(frame.axis)} {_place(a)}: {number(b)}</title></circle>"
            for a, b in finite
        ]
    lost = [a for a, b in series.points if not math.isfinite(b)]
    parts += [
        f'<path class="lost" d="M{x(a) - 3:.1f} {frame.top - 3:g}l6 6m0 -6l-6 6">'
        f"<title>{escape(series.split)}, {escape(frame.axis)} {_place(a)}: not finite</title></path>"
        for a in lost[:MAX_DOTS]
    ]
    return "".join(parts)


def _gap(series: Sequence[Series], x: Scale, y: Scale) -> str:
    """The area between the training and the validation curve: what the model knows only by heart."""
    by_split = {s.split: s.curve for s in series}
    train, validation = by_split.get("train", []), by_split.get("validation", [])
    if len(train) < 2 or len(validation) < 2:
        return ""
    low, high = max(train[0][0], validation[0][0]), min(train[-1][0], validation[-1][0])
    if low >= high:
        return ""
    upper, lower = (
        [(low, _at(curve, low)), *(p for p in curve if low < p[0] < high), (high, _at(curve, high))]
        for curve in (validation, _thinned(train))
    )
    return f'<polygon class="gap" points="{_outline(upper, lower, x, y)}"/>'


def _outline(one: Points, other: Points, x: Scale, y: Scale) -> str:
    """The corners of the area between two curves."""
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in [*_thinned(one), *reversed(_thinned(other))])


def _end_labels(series: Sequence[Series], x: Scale, y: Scale, frame: Frame) -> str:
    """The last value of each curve beside its end, moved apart where they would overlap."""
    wanted = sorted(((y(s.curve[-1][1]), s) for s in series if s.curve), key=lambda pair: pair[0])
    height = 15.0
    places: list[float] = []
    for position, _ in wanted:
        places.append(max(position, places[-1] + height) if places else position)
    overhang = max(0.0, places[-1] - (frame.height - frame.bottom)) if places else 0.0
    labels = []
    for place, (_, s) in zip(places, wanted, strict=True):
        words = f"{s.split} {number(s.curve[-1][1])}" if frame.names else number(s.curve[-1][1])
        labels.append(
            f'<text class="end {s.look}" x="{frame.width - frame.right + 10:g}"'
            f' y="{place - overhang + 4:.1f}">{escape(words)}</text>'
        )
    return "".join(labels)


# --- the matrix ----------------------------------------------------------------------------------------------------


def _cell(where: tuple[float, float, float], value: float, share: float, names: tuple[str, str, bool]) -> str:
    (x, y, size), (truth, predicted, right) = where, names
    # mistakes are few: the square root lets one in a hundred be seen
    opacity = (0.06 + 0.86 * share) if right else (math.sqrt(share) * 0.92 if value else 0.03)
    kind = ("right" if right else "wrong") if value else "none"
    drawn = (
        f'<g class="{kind}"><rect x="{x:.1f}" y="{y:.1f}" width="{size - 1.5:.1f}" height="{size - 1.5:.1f}" rx="2"'
        f' fill-opacity="{opacity:.2f}"><title>{escape(truth)} predicted as {escape(predicted)}: {value:g}'
        f" ({100 * share:.1f}%)</title></rect>"
    )
    if value and size >= 22:
        tone = "on" if opacity > 0.55 else "off"
        drawn += (
            f'<text class="{tone}" x="{x + size / 2 - 0.75:.1f}" y="{y + size / 2 + 3.5:.1f}" text-anchor="middle">'
            f"{value:g}</text>"
        )
    return drawn + "</g>"


# --- shapes and numbers --------------------------------------------------------------------------------------------


def svg(title: str, description: str, size: tuple[float, float], content: str, kind: str) -> str:
    """A drawing that is described for those who do not see it; a matrix is never larger than `size`."""
    own_size = f' style="max-width:{size[0]:.0f}px"' if kind == "matrix" else ""
    return (
        f'<svg class="{kind}"{own_size} viewBox="0 0 {size[0]:g} {size[1]:g}" role="img"'
        f' aria-label="{escape(title)}: {escape(description)}">'
        f"<desc>{escape(title)}: {escape(description)}</desc>{content}</svg>"
    )


def _describe(series: Sequence[Series], axis: str) -> str:
    said = []
    for s in series:
        if finite := s.finite:
            first, last = finite[0], finite[-1]
            low = min(value for _, value in finite)
            high = max(value for _, value in finite)
            said.append(
                f"{s.split} from {number(first[1])} at {axis} {_place(first[0])} to {number(last[1])} at {axis}"
                f" {_place(last[0])}, between {number(low)} and {number(high)}"
            )
    return "; ".join(said)


def _place(x: float) -> str:
    return f"{x:,.0f}" if x == int(x) else number(x)


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _path(runs: Iterable[Points], x: Scale, y: Scale) -> str:
    return "".join(
        "".join(f"{'L' if i else 'M'}{x(a):.1f} {y(b):.1f}" for i, (a, b) in enumerate(run)) for run in runs if run
    )


def _runs(points: Points) -> list[Points]:
    """The stretches between values that are not finite, thinned for drawing."""
    grouped = itertools.groupby(points, key=lambda point: math.isfinite(point[1]))
    return [_thinned(list(run)) for finite, run in grouped if finite]


def _thinned(points: Points) -> Points:
    """At most MAX_POINTS, with the lowest and the highest of every stretch, so that no peak is lost."""
    if len(points) <= MAX_POINTS:
        return points
    width = math.ceil(len(points) / (MAX_POINTS // 2))
    kept: Points = []
    for start in range(0, len(points), width):
        part = points[start : start + width]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _moving_mean(points: Points, width: int) -> Points:
    """A centered mean, which lags behind nothing. At the start, where values change fast, its window shrinks evenly."""
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    smoothed, half = [], width // 2
    for i, (x, _) in enumerate(points):
        before = min(half, i)
        after = min(before, len(points) - 1 - i)
        smoothed.append((x, (sums[i + after + 1] - sums[i - before]) / (before + after + 1)))
    return smoothed


def _at(curve: Points, step: float) -> float:
    """The curve's value at a step within it, between its points on a straight line."""
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 <= step <= x1:
            return y0 + (y1 - y0) * (step - x0) / (x1 - x0) if x1 > x0 else y1
    return curve[-1][1]


def _value_scale(values: list[float], frame: Frame, from_zero: bool) -> Scale:
    low, high = min(values), max(values)
    bottom, top = frame.height - frame.bottom, frame.top
    if low > 0 and high / low > 50 and not from_zero:
        return Scale(low / 1.15, high * 1.15, bottom, top, log=True)
    low, high = _widened(low, high)
    room = 0.06 * (high - low)
    floor = 0.0 if low >= 0 and (from_zero or low < 0.35 * high) else low - room  # near enough to zero to show it
    return Scale(floor, high + room, bottom, top)


def _widened(low: float, high: float) -> tuple[float, float]:
    """A span that is not empty."""
    if high > low:
        return low, high
    return (low - 0.5, high + 0.5) if low == 0 else (low - abs(low) * 0.1, high + abs(high) * 0.1)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor for factor in (1, 2, 5, 10) if factor * power >= step * 0.999) * power


def _tick(value: float, ticks: list[float]) -> str:
    """The shortest text that tells a tick from its neighbors."""
    size, largest = abs(value), max(map(abs, ticks))
    if not size or (largest >= 1e-3 and size < 1e-12 * largest):
        return "0"
    if size < 1e-3 or size >= 1e10:
        return re.sub(r"e([-+])0", r"e\1", f"{value:.2g}")
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if largest >= 10 * scale and size >= scale:
            return f"{value / scale:.6g}{unit}"
    return f"{value:.6g}"


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}\N{HORIZONTAL ELLIPSIS}"
