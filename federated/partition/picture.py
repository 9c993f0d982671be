"""How a partition looks: label counts, a few lines for a terminal, and one inline SVG. No script, no font, no color.

The SVG is drawn in the color of the text around it, so that it serves light and dark pages.
"""

import html

import torch
from torch import Tensor

from core.data import Data
from federated.partition.partition import Partition
from federated.partition.view import labels_of

SHOWN = 20  # clients in a terminal
DRAWN = 60  # clients in the SVG
COLUMNS = 40  # labels side by side; of more, neighbors are added up
BLOCKS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
CELL, LEFT, TOP, BOTTOM = 18, 120, 6, 34  # SVG units


def counts(partition: Partition, data: Data) -> Tensor:
    """int64 [clients, bins]: examples by class, or by quantile bin of real targets; of text there is one bin, all."""
    if data.spec.kind == "text":
        return partition.sizes[:, None]
    labels = torch.from_numpy(labels_of(data, "a picture"))
    bins = data.spec.outputs if data.spec.target == "class" else int(labels.max()) + 1
    cells = partition.owner * bins + labels
    return torch.bincount(cells, minlength=len(partition) * bins).view(len(partition), bins)


def effective_labels(table: Tensor) -> Tensor:
    """float64 [clients]: how many equally frequent labels are as mixed as a client's are: exp of their entropy."""
    shares = table.double() / table.sum(dim=1, keepdim=True)
    effective: Tensor = torch.special.entr(shares).sum(dim=1).exp()
    return effective


def text_picture(partition: Partition, data: Data) -> str:
    """Lines for a terminal: what all clients are like, then one line for each of the first 20.

    A block's height is the square root of the label's share of the client's examples, so that rare ones are seen; of
    text, a bar is the client's size beside the largest.
    """
    table, sizes = counts(partition, data), partition.sizes
    lines = [summary(table)]
    merged, names = _merged(table[:SHOWN]), _names(data, table.shape[1])
    width = max(len("examples"), len(f"{int(sizes.max()):,}"))
    if len(names) > 1:
        lines.append(f"client  {'examples':>{width}}  {names[0]} to {names[-1]}")
    for client, row in enumerate(merged):
        size = int(sizes[client])
        bar = _heights(row / size) if len(names) > 1 else BLOCKS[-1] * -int(-COLUMNS * size // int(sizes.max()))
        lines.append(f"{client:>6}  {size:>{width},}  {bar}".rstrip())
    if len(partition) > SHOWN:
        lines.append(f"   ...  and {len(partition) - SHOWN:,} more")
    return "\n".join(lines)


def summary(table: Tensor) -> str:
    """One line on counts [clients, bins]: sizes, and how many labels clients have in effect."""
    sizes = table.sum(dim=1)
    words = (
        f"{len(table):,} clients, {int(sizes.sum()):,} examples: {int(sizes.min()):,} to {int(sizes.max()):,} each, "
        f"median {sizes.double().quantile(0.5):,.0f}"
    )
    if table.shape[1] == 1:
        return words
    return f"{words}; in effect {effective_labels(table).quantile(0.5):.1f} of {table.shape[1]} labels (median)"


def svg_picture(partition: Partition, data: Data) -> str:
    """Clients from left to right (the first 60), labels from top to bottom; a disc's area is the number of examples."""
    table = counts(partition, data)
    names, shown = _names(data, table.shape[1]), _merged(table[:DRAWN])
    largest = int(shown.max())
    marks = [_text(LEFT - 8, TOP + CELL * (i + 0.7), name, "end") for i, name in enumerate(names)]
    for client, row in enumerate(shown.tolist()):
        marks += [_disc(client, i, names[i], count, largest) for i, count in enumerate(row) if count]
    bottom = TOP + CELL * len(names)
    marks += [
        _text(LEFT + CELL * (i + 0.5), bottom + 12, str(i), "middle")
        for i in range(0, len(shown), 1 + len(shown) // 20)
    ]
    rest = f" (the first {DRAWN} of {len(table):,})" if len(table) > DRAWN else ""
    marks.append(_text(LEFT, bottom + 28, f"client{rest}", "start"))
    width, height = LEFT + CELL * max(len(shown), 12), bottom + BOTTOM
    words = html.escape(f"Examples of each client by label: {summary(table)}", quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="partition" style="max-width:{width}px" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{words}" fill="currentColor" font-size="11">'
        f"<desc>{words}</desc>{''.join(marks)}</svg>"
    )


def _disc(client: int, place: int, name: str, count: int, largest: int) -> str:
    radius = max(0.8, CELL / 2 * (count / largest) ** 0.5)
    x, y = LEFT + CELL * (client + 0.5), TOP + CELL * (place + 0.5)
    title = html.escape(f"client {client}, {name}: {count:,}")
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:.1f}" fill-opacity=".7"><title>{title}</title></circle>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _heights(shares: Tensor) -> str:
    """One block character for each share."""
    return "".join(BLOCKS[level] for level in (8 * shares.sqrt()).ceil().int().tolist())


def _per_column(bins: int) -> int:
    return -(-bins // COLUMNS)


def _merged(table: Tensor) -> Tensor:
    """[clients, at most COLUMNS]: neighboring bins added up where there are more."""
    return torch.stack([part.sum(dim=1) for part in table.split(_per_column(table.shape[1]), dim=1)], dim=1)


def _names(data: Data, bins: int) -> list[str]:
    """The names of the columns of `_merged`."""
    if data.spec.kind == "text":
        return ["windows"]
    own = data.spec.classes or tuple(f"bin {i + 1}" for i in range(bins))
    short = [name if len(name) <= 16 else f"{name[:13]}..." for name in own]
    step = _per_column(bins)
    return short[::step] if step == 1 else [f"{name}, ..." for name in short[::step]]
