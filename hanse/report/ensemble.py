"""What a report says of many members: how they differ, what they are together, and each of them.

All of it is made from the `summary.json` of a run with `repeat`; see docs/ensembles.md.
"""

from collections.abc import Mapping
from typing import Any

from hanse.report.charts import escape
from hanse.report.words import grid, is_number, mapping, margin, named, tile, written

MAX_MEMBERS = 200  # rows of the table; summary.json holds the rest


def repeat_of(summary: Mapping[str, Any]) -> str:
    """What was repeated: `5 folds x 4 seeds`; empty if nothing was."""
    repeat = mapping(summary.get("repeat"))
    counts = [(repeat.get(name), name) for name in ("folds", "bootstraps", "seeds")]
    return " x ".join(f"{count} {name}" for count, name in counts if is_number(count) and count > 1)


def headline(summary: Mapping[str, Any], name: str) -> list[str]:
    """Two tiles for a metric: the mean of the members with its interval, and the ensemble's own; [] without members."""
    spread = mapping(mapping(summary.get("spread")).get(name))
    if not is_number(spread.get("mean")):
        return []
    split = str(summary.get("split", "test"))
    std, low, high = (spread.get(key) for key in ("std", "low", "high"))
    content = written(name, spread["mean"])
    content += f" <small>± {escape(margin(name, std))}</small>" if is_number(std) else ""
    note = f"mean of {spread.get('members', '?')}"
    if is_number(low) and is_number(high):
        note += f"; 95% interval {_interval(name, low, high)}"
    tiles = [tile(f"{split} {named(name)}", content, note, lead=split)]
    ensemble = mapping(summary.get("ensemble"))
    together = mapping(ensemble.get("metrics")).get(name)
    if is_number(together):
        content = written(name, together)
        tiles.append(tile(f"ensemble {named(name)}", content, _together(ensemble), lead=split))
    return tiles


def scores(summary: Mapping[str, Any]) -> str:
    """The table of all metrics over the members, and beside them the ensemble's."""
    spreads, ensemble = mapping(summary.get("spread")), mapping(summary.get("ensemble"))
    together = mapping(ensemble.get("metrics"))
    rows = []
    for name in dict.fromkeys([*spreads, *together]):
        found = mapping(spreads.get(name))
        std, low, high = (found.get(key) for key in ("std", "low", "high"))
        between = _interval(name, low, high) if is_number(low) and is_number(high) else "-"
        deviation = margin(name, std) if is_number(std) else "-"
        members = f"{found['members']}" if is_number(found.get("members")) else "-"
        cells = (written(name, found.get("mean")), deviation, between, members, written(name, together.get(name)))
        rows.append([escape(text) for text in (named(name), *cells)])
    if not rows:
        return ""
    table = grid(("metric", "mean", "std", "95% interval of the mean", "members", "ensemble"), rows)
    return f'{_title("Scores", summary)}\n<div class="card scroll">{table}</div>'


def members(summary: Mapping[str, Any], name: str) -> str:
    """One row per member: how it was made and how good it is by metric `name` and its loss; or why it failed."""
    listed = summary.get("members")
    found = [member for member in listed if isinstance(member, dict)] if isinstance(listed, list) else []
    if not found:
        return ""
    varied = [key for key in ("fold", "bootstrap", "seed") if any(is_number(m.get(key)) for m in found)]
    measured = [name] if name == "loss" else [name, "loss"]
    rows = [_row(member, varied, measured) for member in found[:MAX_MEMBERS]]
    table = grid(("member", *varied, *map(named, measured), "steps", "ended", "weights"), rows)
    failed = sum(bool(member.get("error")) for member in found)
    notes = [f"{failed} of {len(found)} failed and count nowhere."] if failed else []
    notes += [f"{len(found) - MAX_MEMBERS} more are in summary.json."] if len(found) > MAX_MEMBERS else []
    note = f'<p class="note">{" ".join(notes)}</p>' if notes else ""
    return f'<h2>Members <span class="about">{len(found)}</span></h2>\n<div class="card scroll">{table}{note}</div>'


def _row(member: Mapping[str, Any], varied: list[str], measured: list[str]) -> list[str]:
    title, cells = escape(member.get("member", "")), [_plain(member.get(key)) for key in varied]
    if error := member.get("error"):
        return [f'{title} <span class="failed">failed: {escape(error)}</span>', *cells, *["-"] * (len(measured) + 3)]
    values = mapping(member.get("metrics"))
    scores = [escape(written(key, values.get(key))) for key in measured]
    weights = str(member.get("weights_sha256", ""))[:12]
    return [title, *cells, *scores, _plain(member.get("steps")), escape(member.get("ended", "")), escape(weights)]


def _title(title: str, summary: Mapping[str, Any]) -> str:
    return f'<h2>{title} <span class="about">on {escape(summary.get("split", "test"))}</span></h2>'


def _together(ensemble: Mapping[str, Any]) -> str:
    count = ensemble.get("members")
    return f"{count} members together" if is_number(count) else "all members together"


def _interval(name: str, low: float, high: float) -> str:
    return f"{written(name, low)} to {written(name, high)}"


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"
