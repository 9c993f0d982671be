"""How sure a model is, drawn: the reliability diagram, and the numbers of `core.ensemble.uncertainty` beside it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hanse.format import number, percent
from hanse.report.charts import escape
from hanse.report.words import is_number, table

NAMES = {
    "expected_calibration_error": "calibration error (ECE)",
    "negative_log_likelihood": "negative log-likelihood",
    "brier_score": "Brier score",
    "predictive_entropy": "entropy (nats)",
    "expected_entropy": "entropy of each alone",
    "mutual_information": "mutual information",
    "std": "std between voices",
}
# The plot's square, and below it a strip for the counts, in SVG units
LEFT, TOP, SIDE, STRIP, GAP = 44.0, 10.0, 300.0, 54.0, 14.0


def calibration(uncertainty: Mapping[str, Any], about: str) -> str:
    """The section; empty if nothing was measured. `about` says on what, and who."""
    rows = [(name, number(uncertainty[key])) for key, name in NAMES.items() if is_number(uncertainty.get(key))]
    if not rows:
        return ""
    head = f'<h2>Uncertainty <span class="about">{escape(about)}</span></h2>'
    if "std" in uncertainty:
        note = "How far the voices are apart, root mean square over the rows, in the unit of the target."
        return f'{head}\n<div class="card">{table(rows, numeric=True)}<p class="note">{note}</p></div>'
    note = "Calibration error is the mean distance of confidence and accuracy. Entropy is how unsure the prediction is"
    if is_number(uncertainty.get("mutual_information")):
        note += "; a part of it is each one's own, the rest, the mutual information, is what they disagree about"
    bins, error = uncertainty.get("reliability"), uncertainty.get("expected_calibration_error")
    diagram = reliability([bin for bin in bins if isinstance(bin, dict)] if isinstance(bins, list) else [])
    notes = [f"calibration error {number(error)}"] if is_number(error) else []
    notes.append("line: accuracy; orange: how far the confidence is from it")
    caption = f"<figcaption>Reliability{''.join(f'<span>{text}</span>' for text in notes)}</figcaption>"
    return (
        f'{head}\n<div class="two"><figure>{caption}{diagram}</figure>'
        f'<div class="card">{table(rows, numeric=True)}<p class="note">{note}.</p></div></div>'
    )


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy by confidence as SVG: a line per bin, the way to its confidence in another color, and the counts below.

    A bin is {"low", "high", "count", "confidence", "accuracy"}; those without a count are left out.
    """
    keys = ("low", "high", "count", "confidence", "accuracy")
    drawn = [bin for bin in bins if all(is_number(bin.get(key)) for key in keys) and bin["count"] > 0]
    if not drawn:
        return '<p class="empty">No prediction was counted.</p>'
    total, most = sum(bin["count"] for bin in drawn), max(bin["count"] for bin in drawn)
    parts = [_frame(), *(_bin(bin, total, most) for bin in drawn)]
    # over the bars, or a well calibrated model would hide it
    parts.append(f'<path class="mark" d="M{LEFT:g} {TOP + SIDE:g}L{LEFT + SIDE:g} {TOP:g}"/>')
    width, height = LEFT + SIDE + 12, TOP + SIDE + GAP + STRIP + 38
    said = "; ".join(
        f"confidence {percent(bin['confidence'])}: accuracy {percent(bin['accuracy'])} of {bin['count']:g}"
        for bin in drawn
    )
    return (
        f'<svg class="square" style="max-width:{width * 1.15:.0f}px" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="Reliability: {escape(said)}"><desc>Reliability: {escape(said)}</desc>{"".join(parts)}</svg>'
    )


def _x(share: float) -> float:
    return LEFT + share * SIDE


def _y(share: float) -> float:
    return TOP + (1 - share) * SIDE


def _frame() -> str:
    bottom = TOP + SIDE + GAP + STRIP
    turned = 'rotate(-90)" text-anchor="middle'
    ticks = []
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
        at = f'{_x(share):g}" y="{bottom + 16:g}" text-anchor="middle'
        ticks += [
            f'<line class="grid" x1="{LEFT:g}" x2="{LEFT + SIDE:g}" y1="{_y(share):g}" y2="{_y(share):g}"/>',
            f'<text class="tick" x="{LEFT - 8:g}" y="{_y(share) + 4:g}" text-anchor="end">{share:g}</text>',
            f'<text class="tick" x="{at}">{share:g}</text>',
        ]
    for edge in (TOP + SIDE, bottom):
        ticks.append(f'<line class="base" x1="{LEFT:g}" x2="{LEFT + SIDE:g}" y1="{edge:g}" y2="{edge:g}"/>')
    names = (
        f'<text class="axis" x="{_x(0.5):g}" y="{bottom + 33:g}" text-anchor="middle">confidence</text>'
        f'<text class="axis" transform="translate(11 {_y(0.5):g}) {turned}">accuracy</text>'
        f'<text class="axis" transform="translate(11 {bottom - STRIP / 2:g}) {turned}">count</text>'
    )
    return "".join(ticks) + names


def _bin(bin: Mapping[str, float], total: float, most: float) -> str:
    accuracy, confidence, count = bin["accuracy"], bin["confidence"], bin["count"]
    left, width = _x(bin["low"]) + 1, _x(bin["high"]) - _x(bin["low"]) - 2
    low, high = sorted((accuracy, confidence))
    strip = max(1.5, STRIP * math.sqrt(count / most))  # the square root lets a rare bin be seen
    bottom, level = TOP + SIDE + GAP + STRIP, f"{_y(accuracy):.1f}"

    def bar(kind: str, top: float, height: float) -> str:
        return (
            f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{max(0.0, height):.1f}"/>'
        )

    return (
        f"<g><title>confidence {percent(confidence)}, accuracy {percent(accuracy)}: {count:g} of {total:g}</title>"
        + bar("hit", _y(low), _y(0) - _y(low))
        + bar("off", _y(high), _y(low) - _y(high))
        + f'<line class="level" x1="{left:.1f}" x2="{left + width:.1f}" y1="{level}" y2="{level}"/>'
        + bar("count", bottom - strip, strip)
        + "</g>"
    )
