"""Statistics of columns that lie with many clients, without training: states merge, rows stay where they are.

request = Request.of(clients[0]); states = [local(data, request) for data in clients]
statistics = finish(reduce(merge, states), request)

`quantiles` asks in rounds how many rows lie below given edges, so that only counts leave a client. Rows count once,
whatever their example weight. All is in float64 and in the units of the table: its normalization is undone. Merging in
another order changes rounding only. What of its rows a client lets out its `Policy` says: groups of rows, no extremes,
nothing of too few; what was withheld is in the result.
"""

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from core.data import Data
from core.data.preprocess import Number, TableFit
from core.errors import ConfigError, DataError, WorkerError
from federated.policy import Policy

# float64; count, sum, mean, m2, low and high (NaN: withheld) are [F], histogram [F, E - 1], labels [C]; [] are `sites`
# that tell of their rows, `silent` ones, `hidden` rows of labels, and `least_sites` that a sum must have
State = dict[str, Tensor]
Ask = Callable[[Tensor], Tensor]  # edges [E] -> counts [E + 1], summed over the clients

PARTS = 64  # that a round of `quantiles` cuts every bracket into: of a float's 64 bits it settles 6


@dataclass(frozen=True)
class Request:
    """What a server asks of every client: of F columns by name, and of the targets if it names their classes [C].

    edges [E], or [F, E] for edges of each column's own, ask for histograms, whose bins are those of numpy.histogram:
    closed on the left, the last one on both sides, and what lies outside is not counted. sites: how many are asked.
    """

    columns: tuple[str, ...]
    classes: tuple[str, ...] = ()
    edges: Tensor | None = None
    split: str = "train"
    sites: int = 1

    def __post_init__(self) -> None:
        if not self.columns and not self.classes:
            raise ValueError("columns must name at least one column, got none")
        if self.edges is not None:
            _check_edges(self.edges, len(self.columns))

    @classmethod
    def of(cls, data: Data, edges: Tensor | None = None, split: str = "train") -> "Request":
        """All numeric columns of a table, with a real target last, and the classes if it has them. Reads no row."""
        fitted = _fitted(data)
        columns = tuple(feature.name for feature in fitted.features if isinstance(feature, Number))
        if data.spec.target == "real":
            columns += (fitted.target,)
        return cls(columns, data.spec.classes, edges, split)


@dataclass(frozen=True)
class Statistics:
    """Of the rows of all clients together. Each tensor is float64 [F]; `variance` divides by the count.

    squares: the sum of squares; histogram [F, E - 1]; labels: how many rows each class has; hidden: rows of classes
    that are withheld. low and high are NaN where a site withholds them. withheld: in words, what is not in the numbers.
    """

    columns: tuple[str, ...]
    count: Tensor
    sum: Tensor
    squares: Tensor
    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor
    histogram: Tensor | None
    labels: dict[str, int]
    hidden: int = 0
    withheld: tuple[str, ...] = ()

    @property
    def std(self) -> Tensor:
        """The square root of the variance."""
        return self.variance.sqrt()

    def of(self, column: str) -> dict[str, float]:
        """One column's numbers by name. ConfigError if it was not asked for."""
        if column not in self.columns:
            raise ConfigError(f"statistics: there is no column '{column}'; there is {', '.join(self.columns)}")
        at = self.columns.index(column)
        names = ("count", "sum", "squares", "mean", "variance", "std", "low", "high")
        return {name: getattr(self, name)[at].item() for name in names}


def summarize(clients: Iterable[Data], policy: Policy, request: Request | None = None) -> Statistics:
    """The statistics of the clients' union; of all numeric columns unless said. DataError if there is no row."""
    clients = list(clients)
    if not clients:
        raise DataError("statistics: there is no client; give at least one")
    asked = replace(request or Request.of(clients[0]), sites=len(clients))
    return finish(reduce(merge, (local(data, asked, policy) for data in clients)), asked)


def local(data: Data, request: Request, policy: Policy) -> State:
    """A client's answer. DataError if it lacks a column, or has a class that the request does not name."""
    values, rows = _columns(data, request.columns, request.split), data.sizes[request.split]
    labels = _labels(data, request) if request.classes else torch.zeros(0, dtype=torch.float64)
    is_silent = 0 < rows < policy.least_count or request.sites < policy.least_sites
    if is_silent:
        values, labels = values[:, :0], torch.zeros_like(labels)
    state = _moments(values) | _range(values, policy)
    if request.edges is not None:
        told = torch.stack([policy.coarse(column) for column in values]) if values.numel() else values
        state["histogram"] = _histogram(told, request.edges)
    if request.classes:
        state["labels"] = policy.cells(labels)
    hidden = float(labels.sum() - state["labels"].sum()) if request.classes else 0.0
    numbers = {"sites": float(rows > 0 and not is_silent), "silent": float(is_silent), "hidden": hidden}
    numbers["least_sites"] = float(policy.least_sites)
    return state | {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}


def _moments(values: Tensor) -> State:
    """Of values [F, N]."""
    count = torch.full((len(values),), values.shape[1], dtype=torch.float64)
    total = values.sum(1)
    mean = total / count.clamp(min=1)
    return {"count": count, "sum": total, "mean": mean, "m2": (values - mean[:, None]).square().sum(1)}


def _range(values: Tensor, policy: Policy) -> State:
    if not policy.extremes:
        return {name: torch.full((len(values),), math.nan, dtype=torch.float64) for name in ("low", "high")}
    if values.numel():
        return {"low": values.amin(1), "high": values.amax(1)}
    # of no rows: what leaves the other side of a merge as it is
    nothing = torch.full((len(values),), math.inf, dtype=torch.float64)
    return {"low": nothing, "high": -nothing}


def merge(a: State, b: State) -> State:
    """The state of both rows together. All tensors add, but `low`, `high`, `mean`, `m2` and `least_sites`.

    Mean and m2, the sum of squares about the mean, merge as in Chan, Golub and LeVeque (1979, eq. 2.1): no digits are
    lost where the mean is large beside the spread. DataError if the states answer different requests.
    """
    if {name: tensor.shape for name, tensor in a.items()} != {name: tensor.shape for name, tensor in b.items()}:
        raise DataError("statistics: two clients answered different requests; send all of them the same one")
    count = a["count"] + b["count"]
    share, apart = b["count"] / count.clamp(min=1), b["mean"] - a["mean"]
    own = {
        "mean": a["mean"] + apart * share,
        "m2": a["m2"] + b["m2"] + apart.square() * a["count"] * share,
        "low": torch.minimum(a["low"], b["low"]),
        "high": torch.maximum(a["high"], b["high"]),
        "least_sites": torch.maximum(a["least_sites"], b["least_sites"]),
    }
    return {name: own[name] if name in own else a[name] + b[name] for name in a}


def finish(state: State, request: Request) -> Statistics:
    """What the merged state says. DataError if no client had a row, or too few sites tell of theirs."""
    count, mean = state["count"], state["mean"]
    sites, least, silent = (int(state[name]) for name in ("sites", "least_sites", "silent"))
    if not sites and not silent:
        raise DataError(f"statistics: no client has a row in its split '{request.split}'")
    if sites < least:
        raise DataError(
            f"statistics: {sites} of {request.sites} sites tell of their rows, and a sum is of {least} or more "
            "(statistics.least_sites); ask more sites"
        )
    labels = dict(zip(request.classes, map(int, state["labels"].tolist()), strict=True)) if request.classes else {}
    return Statistics(
        columns=request.columns,
        count=count,
        sum=state["sum"],
        squares=state["m2"] + count * mean.square(),
        mean=mean,
        variance=state["m2"] / count.clamp(min=1),
        low=state["low"],
        high=state["high"],
        histogram=state.get("histogram"),
        labels=labels,
        hidden=int(state["hidden"]),
        withheld=tuple(_withheld(state)),
    )


def _withheld(state: State) -> Iterator[str]:
    if silent := int(state["silent"]):
        yield f"all of {silent} {'site' if silent == 1 else 'sites'} with too few rows"
    if bool(state["low"].isnan().any()):
        yield "the least and the largest values"
    if hidden := int(state["hidden"]):
        yield f"the labels of {hidden} rows"


# --- one client's columns ------------------------------------------------------------------------------------------


def column(data: Data, name: str, split: str = "train") -> Tensor:
    """[N] float64: a numeric column of a client's table, or its real target, in the table's units."""
    return _columns(data, (name,), split)[0]


def counts(values: Tensor, edges: Tensor) -> Tensor:
    """A client's answer in a round of `quantiles`: of values [N], how many lie in each gap of the edges [E].

    int64 [E + 1]. An edge belongs to the gap below it.
    """
    return torch.bincount(torch.bucketize(values.double(), edges), minlength=len(edges) + 1)


def asking(clients: Sequence[Data], name: str, policy: Policy, split: str = "train") -> Ask:
    """What `quantiles` asks, where the clients are at hand: each counts its own rows, and the counts are summed.

    A client counts the middles of its groups in place of its rows, so that no number of questions tells where a row is.
    """
    columns = [column(data, name, split) for data in clients]  # once, not in every round
    told = [policy.coarse(values) for values in columns if len(values) >= policy.least_count]
    if len(told) < policy.least_sites:
        told = []
    return lambda edges: sum((counts(values, edges) for values in told), torch.zeros(len(edges) + 1, dtype=torch.long))


def _fitted(data: Data) -> TableFit:
    fitted = data.preprocess.fitted
    if not isinstance(fitted, TableFit):
        raise ConfigError(f"statistics: need columns, so a table, but data.kind is {data.spec.kind}")
    return fitted


def _columns(data: Data, names: tuple[str, ...], split: str) -> Tensor:
    """[F, N] float64, in the table's units."""
    fitted, at = _fitted(data), 0
    inputs, targets = _rows(data, split)
    places: dict[str, tuple[Tensor, float, float]] = {}
    for feature in fitted.features:
        if isinstance(feature, Number):
            places[feature.name] = (inputs[:, at], feature.mean, feature.std)
        at += feature.width
    if data.spec.target == "real" and targets is not None:
        places[fitted.target] = (targets[:, 0], fitted.target_mean, fitted.target_std)
    if odd := [name for name in names if name not in places]:
        raise DataError(f"statistics: a client has no numeric column '{odd[0]}'; ask for what all of them have")
    values = torch.empty(len(names), len(inputs), dtype=torch.float64)
    for i, name in enumerate(names):
        prepared, mean, std = places[name]
        values[i] = prepared.double() * std + mean
    return values


def _rows(data: Data, split: str) -> tuple[Tensor, Tensor | None]:
    if split not in data.splits:
        raise ConfigError(f"statistics: there is no split '{split}' in this data; there is {', '.join(data.splits)}")
    examples = data.splits[split]
    return examples.take(examples.addresses(data.seed, None))


def _labels(data: Data, request: Request) -> Tensor:
    """[C]: a client may number its classes otherwise, so they are matched by name."""
    state = torch.zeros(len(request.classes), dtype=torch.float64)
    _, targets = _rows(data, request.split)
    if data.spec.target != "class" or targets is None:
        raise DataError("statistics: a client has no classes; ask for columns only")
    found = torch.bincount(targets, minlength=len(data.spec.classes))
    for name, number in zip(data.spec.classes, found.tolist(), strict=True):
        if name in request.classes:
            state[request.classes.index(name)] += number
        elif number:
            raise DataError(f"statistics: a client has the class '{name}', which was not asked for; add it")
    return state


def _histogram(values: Tensor, edges: Tensor) -> Tensor:
    """[F, E - 1] of values [F, N]."""
    edges = edges.double().expand(len(values), -1).contiguous()
    bins = torch.searchsorted(edges, values, right=True) - 1
    bins = torch.where(values == edges[:, -1:], edges.shape[1] - 2, bins)  # the last bin is closed
    inside = (bins >= 0) & (bins <= edges.shape[1] - 2)
    result = torch.zeros(len(values), edges.shape[1] - 1, dtype=torch.float64)
    return result.scatter_add_(1, bins.clamp(0, edges.shape[1] - 2), inside.double())


def _check_edges(edges: Tensor, columns: int) -> None:
    if edges.shape[-1:] < (2,) or edges.shape[:-1] not in ((), (columns,)):
        raise ValueError(f"edges must be [E] or [{columns}, E] with E at least 2, got {list(edges.shape)}")
    if not (edges.diff() > 0).all():
        raise ValueError("edges must rise from each to the next")


# --- quantiles -----------------------------------------------------------------------------------------------------


def quantiles(ask: Ask, probabilities: Sequence[float], low: float, high: float, tolerance: float = 0.0) -> list[float]:
    """The quantiles of all clients' rows, interpolated as numpy.quantile does, each at most `tolerance` too high.

    Every round asks for counts below edges that cut what is left of each quantile's range [low, high]. A tolerance of
    0 ends at the row's exact value, after 12 rounds at most, whatever the range: the edges are evenly spaced among the
    floats, not on the line. DataError if a row lies outside the range, or there is none; WorkerError if the number of
    rows changes between two rounds.
    """
    if not all(0 <= p <= 1 for p in probabilities):
        raise ValueError(f"probabilities must be in [0, 1], got {list(probabilities)}")
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"low and high must be finite and in this order, got {low} and {high}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more, got {tolerance}")
    start, stop = _place(low) - 1, _place(high)
    below, inside, above = ask(_edges([start, stop])).tolist()
    if below or above:
        raise DataError(f"quantiles: {int(below + above)} rows lie outside [{low}, {high}]; widen the range")
    if not inside:
        raise DataError("quantiles: no client has a row")
    places = [p * (inside - 1) for p in probabilities]
    ranks = {rank for place in places for rank in (math.floor(place), math.ceil(place))}
    found = _search(ask, dict.fromkeys(sorted(ranks), (start, stop)), int(inside), tolerance)
    pairs = [(found[math.floor(place)], found[math.ceil(place)], place % 1) for place in places]
    return [lower + (upper - lower) * share for lower, upper, share in pairs]


def _search(ask: Ask, brackets: dict[int, tuple[int, int]], rows: int, tolerance: float) -> dict[int, float]:
    """The values of ranks (counted from 0), each somewhere in (low, high] of its bracket of places."""
    while edges := sorted({edge for bracket in brackets.values() for edge in _cuts(*bracket, tolerance)}):
        answer = ask(_edges(edges))
        if int(answer.sum()) != rows:
            raise WorkerError(f"quantiles: clients counted {rows} rows at first, then {int(answer.sum())}; start again")
        reached = list(zip(edges, answer.cumsum(0)[:-1].tolist(), strict=True))  # rows up to each edge
        for rank, (low, high) in brackets.items():
            low = max([low, *(edge for edge, rows_below in reached if rows_below <= rank)])
            high = min([high, *(edge for edge, rows_below in reached if rows_below > rank)])
            brackets[rank] = (low, high)
    return {rank: _float(high) for rank, (_, high) in brackets.items()}


def _cuts(low: int, high: int, tolerance: float) -> list[int]:
    """Places strictly between two others; none where they are near enough."""
    if high - low <= 1 or _float(high) - _float(low) <= tolerance:
        return []
    return sorted({low + (high - low) * i // PARTS for i in range(1, PARTS)} - {low})


def _edges(places: list[int]) -> Tensor:
    return torch.tensor([_float(place) for place in places], dtype=torch.float64)


def _place(value: float) -> int:
    """The number of a float among all floats: neighbors differ by 1, and both zeros are 0."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits if bits >= 0 else -(bits & (2**63 - 1))


def _float(place: int) -> float:
    """The inverse of `_place`."""
    value: float = struct.unpack("<d", struct.pack("<q", abs(place)))[0]
    return value if place >= 0 else -value
