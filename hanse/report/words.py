"""The words of a report, as HTML: names and values as they are written, tiles, tables, and the page around them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from hanse.format import number, percent, size
from hanse.report.charts import escape

# How the names of metrics are written out
NAMES = {
    "r2": "R²", "mae": "mean absolute error", "rmse": "root mean squared error", "roc_auc": "ROC AUC",
    "lr": "learning rate", "grad_norm": "gradient norm", "examples_per_s": "examples per second",
    "tokens_per_s": "tokens per second", "memory_bytes": "memory", "mfu": "model FLOPs utilization",
}  # fmt: skip
SHARES = ("accuracy", "balanced_accuracy", "token_accuracy", "mfu")  # shown in percent


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page: the look inside, nothing fetched, no script. Empty sections are left out."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def tile(label: str, content: str, note: str = "", lead: str = "") -> str:
    """A number with its name; `content` is HTML already. `lead` is the split that colors it."""
    kind = f"tile lead {escape(lead)}" if lead else "tile"
    below = f"<p>{escape(note)}</p>" if note else ""
    return f'<div class="{kind}"><dt>{escape(label)}</dt><dd>{content}</dd>{below}</div>'


def table(rows: Iterable[tuple[str, str]], numeric: bool = False) -> str:
    """Two columns; the second is HTML already."""
    kind = ' class="n"' if numeric else ""
    return f"<table>{''.join(f'<tr><th>{escape(k)}</th><td{kind}>{v}</td></tr>' for k, v in rows)}</table>"


def grid(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with names above; the first column is text, the others are numbers, all HTML already."""
    first, *others = (escape(name) for name in names)
    head = f'<th scope="col">{first}</th>' + "".join(f'<th class="n" scope="col">{name}</th>' for name in others)
    body = "".join(
        f'<tr><th scope="row">{title}</th>{"".join(f"<td class=n>{cell}</td>" for cell in cells)}</tr>'
        for title, *cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def named(key: str) -> str:
    """A metric's name as it is written."""
    return NAMES.get(key, key.replace("_", " "))


def written(name: str, value: object) -> str:
    """A metric's value as it is written; a dash where it is not a number."""
    if not is_number(value):
        return "-"
    if name in SHARES:
        return percent(value)
    if name.endswith("_bytes") or name.startswith("bytes_"):
        return size(value)
    return number(value)


def margin(name: str, value: float) -> str:
    """How far a metric is uncertain, in the unit of `written`: two digits are enough."""
    share = 100 * value if name in SHARES else value
    return (number(share) if share >= 10 else f"{share:#.2g}") + ("%" if name in SHARES else "")


def rough(value: float) -> str:
    """Three digits are enough: 62.3 k, 1.24 M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale * 10 or (unit != "k" and value >= scale):
            return f"{value / scale:.3g} <small>{unit}</small>"
    return number(round(value))


def plain(value: object) -> str:
    """Any value of a JSON file in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if isinstance(value, float):
        return number(value)
    return str(value)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is finite, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def mapping(value: object) -> Mapping[str, Any]:
    """The value itself, or an empty mapping if it is none."""
    return value if isinstance(value, dict) else {}
