"""Numbers as a person reads them: 1,437; 0.09412; 1.2 GB; 0:41. The same in every table, line and report."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from core.printable import printable

BLOCKS = "▁▂▃▄▅▆▇█"
HEADLINES = ("accuracy", "r2", "perplexity", "loss")  # the first that a model has is the one shown in a list


def number(value: float) -> str:
    """An integer with thousands separators; a float with four significant digits, of a width that changes little."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return f"{value}"
    if abs(value) >= 1e7:
        return f"{value:.3e}"
    if abs(value) >= 999.95:
        return f"{value:,.0f}"
    return f"{value:#.4g}" if value else "0.000"


def described(config: Any, plain: Any) -> str:
    """The kind of a config and all of its numbers that are not those of the plain one: `sgd lr 0.05 momentum 0.9`."""
    words = [config.kind]
    for name in (field.name for field in dataclasses.fields(config)):
        value = getattr(config, name)
        if name == "lr" or (name != "kind" and value != getattr(plain, name, None)):
            words.append(name if value is True else f"{name} {_plain(value)}")
    return " ".join(words)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"({', '.join(map(_plain, value))})" if isinstance(value, tuple) else str(value)


def size(num_bytes: float) -> str:
    """Bytes in decimal units, as disks and networks are sold: 1.2 GB."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """0:41, 2:05:09 or 3d 02:05:09; a dash where it is not known."""
    if not math.isfinite(seconds) or seconds < 0:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def percent(share: float) -> str:
    return f"{100 * share:.1f}%" if math.isfinite(share) else "-"


def labeled(key: str, value: object) -> str:
    """One entry of a record with its name and unit, both read from the key: `eta_s`, `memory_bytes`, `bytes_up`,
    `tokens_per_s`."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return printable(f"{key.replace('_', ' ')} {value}")
    if key.endswith("_per_s"):
        return f"{number(round(value)) if math.isfinite(value) else value} {key.removesuffix('_per_s')}/s"
    if key.endswith("_bytes"):
        return f"{key.removesuffix('_bytes')} {size(value)}"
    if key.startswith("bytes_"):
        return f"{key.removeprefix('bytes_')} {size(value)}"
    if key.endswith("_s"):
        return f"{key.removesuffix('_s')} {duration(value)}"
    if key == "lr":  # chosen by a person: its own digits, without zeros behind
        return f"lr {value:.4g}"
    return f"{key.replace('_', ' ')} {percent(value) if key == 'mfu' else number(value)}"


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve of `width` characters at most; logarithmic where all values are positive, as losses are."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    if min(finite) > 0:
        finite = [math.log(value) for value in finite]
    columns = min(width, len(finite))
    edges = [round(i * len(finite) / columns) for i in range(columns + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(BLOCKS[min(7, int(8 * (mean - low) / span))] if span else BLOCKS[0] for mean in means)


def columns(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """A table as lines: names above, numbers to the right, the rest to the left. No rows give no lines."""
    if not rows:
        return []
    names = list(rows[0])
    titles = [printable(name.replace("_", " ")) for name in names]
    cells = [[cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(title), *(len(line[i]) for line in cells)) for i, title in enumerate(titles)]
    is_number = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]
    return [
        "  ".join(
            f"{text:>{w}}" if right else f"{text:<{w}}" for text, w, right in zip(line, widths, is_number, strict=True)
        ).rstrip()
        for line in [titles, *cells]
    ]


def cell(value: object) -> str:
    """One value of a table; a dash where there is none."""
    if value is None:
        return "-"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    return printable(str(value))
