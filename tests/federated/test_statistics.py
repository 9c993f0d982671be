"""What clients say together is what NumPy says of all their rows, and they say it in counts and sums."""

import math
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.data import Data, Image, Preprocess, Spec, Table, load
from core.data.examples import Stacked
from core.data.preprocess import Category, Number, TableFit
from core.errors import ConfigError, DataError, WorkerError
from federated.clients import Subset
from federated.policy import Policy
from federated.statistics import (
    Request,
    Statistics,
    asking,
    column,
    counts,
    finish,
    local,
    merge,
    quantiles,
    summarize,
)

MIXED = (Number("age", 40.0, 12.5), Category("city", ("a", "b"), True), Number("income", -3.0, 2.0))
OPEN = Policy(least_count=1, bins_share=1.0, tolerance=0.0, extremes=True, least_sites=1)  # hides nothing
FLOATS = st.floats(-1e6, 1e6, allow_subnormal=True)


def table(inputs: Tensor, targets: Tensor | None = None, classes: tuple[str, ...] = ()) -> Data:
    """A client's table with the columns age, city (2 inputs) and income."""
    target = "class" if classes else "real"
    spec = Spec("table", (4,), len(classes) or 1, target, classes)
    targets = torch.zeros(len(inputs), 1) if targets is None else targets
    fitted = TableFit(MIXED, "height", 170.0, 9.0)
    return Data(Preprocess(spec, fitted), "", {"train": Stacked(inputs, targets)})


def single(values: list[float]) -> Data:
    """A client whose only column is `x`. float64, so that a test's values are what is counted."""
    inputs = torch.tensor(values, dtype=torch.float64).reshape(-1, 1)
    spec = Spec("table", (1,), 1, "real")
    fitted = TableFit((Number("x", 0.0, 1.0),), "y")
    return Data(Preprocess(spec, fitted), "", {"train": Stacked(inputs, torch.zeros(len(values), 1))})


def cut(data: Data, clients: int) -> list[Data]:
    """The training split of `data` dealt out."""
    whole = data.splits["train"]
    parts = torch.arange(len(whole)).tensor_split(clients)
    return [replace(data, splits={"train": Subset(whole, part)}) for part in parts]


def agree(statistics: Statistics, values: np.ndarray) -> None:
    """values: [N, F]."""
    expected = {"mean": values.mean(0), "variance": values.var(0), "std": values.std(0), "sum": values.sum(0)}
    expected |= {"squares": np.square(values).sum(0)}
    for name, numbers in expected.items():
        np.testing.assert_allclose(getattr(statistics, name).numpy(), numbers, rtol=1e-9, atol=1e-9, err_msg=name)
    np.testing.assert_array_equal(statistics.count.numpy(), len(values))
    np.testing.assert_array_equal(statistics.low.numpy(), values.min(0))
    np.testing.assert_array_equal(statistics.high.numpy(), values.max(0))


def test_five_clients_say_what_numpy_says_of_the_whole_table() -> None:
    data = load(Table(path="bundled:breast_cancer"), "class")
    statistics = summarize(cut(data, 5), OPEN)
    values = torch.stack([column(data, name) for name in statistics.columns], dim=1)
    agree(statistics, values.numpy())
    labels = np.bincount(data.splits["train"].targets)  # type: ignore[attr-defined]
    assert statistics.labels == dict(zip(data.spec.classes, labels, strict=True))


def test_columns_are_numbers_and_the_real_target_in_the_units_of_the_table() -> None:
    inputs, targets = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 50)[:, None]
    statistics = summarize(cut(table(inputs, targets), 3), OPEN)
    assert statistics.columns == ("age", "income", "height")
    units = np.array([12.5, 2.0, 9.0]), np.array([40.0, -3.0, 170.0])
    agree(statistics, torch.cat([inputs[:, [0, 3]], targets], 1).double().numpy() * units[0] + units[1])
    assert statistics.of("height")["high"] == 179.0


def test_no_digits_are_lost_where_the_mean_is_large_beside_the_spread() -> None:
    values = 1e7 + np.random.default_rng(0).normal(size=(1000, 1))  # sums of squares would keep two digits
    clients = [single(part.ravel().tolist()) for part in np.array_split(values, 7)]
    assert math.isclose(summarize(clients, OPEN).of("x")["variance"], values.var(), rel_tol=1e-9)


@settings(max_examples=50)
@given(st.lists(st.lists(FLOATS, max_size=8), min_size=1, max_size=5).filter(any))
@example([[], [3.0, 5.0]])
@example([[-3.0, -5.0], []])
def test_merging_is_the_union_also_of_clients_without_rows(parts: list[list[float]]) -> None:
    together = np.array([value for part in parts for value in part])
    request = Request(("x",))
    states = [local(single(part), request, OPEN) for part in parts]
    for order in (states, states[::-1]):
        merged = finish(reduce(merge, order), request)
        np.testing.assert_allclose(merged.mean.item(), together.mean(), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(merged.variance.item(), together.var(), rtol=1e-9, atol=1e-9)
        assert (merged.low.item(), merged.high.item()) == (together.min(), together.max())


@settings(max_examples=50)
@given(st.lists(st.integers(-3, 8), min_size=1, max_size=30), st.integers(1, 4))
def test_histograms_are_those_of_numpy_exactly(values: list[int], clients: int) -> None:
    edges = [-1.0, 0.0, 2.0, 2.5, 5.0]  # many values lie on an edge, some outside
    parts = [single([float(v) for v in part]) for part in np.array_split(values, clients)]
    found = summarize(parts, OPEN, Request(("x",), edges=torch.tensor(edges))).histogram
    assert found is not None
    assert found[0].tolist() == np.histogram(values, edges)[0].tolist()


def test_a_column_can_have_edges_of_its_own() -> None:
    data = table(torch.randn(200, 4, generator=torch.Generator().manual_seed(1)))
    edges = torch.tensor([[0.0, 30.0, 50.0], [-9.0, -3.0, 0.0]])
    found = summarize(cut(data, 4), OPEN, Request(("age", "income"), edges=edges)).histogram
    assert found is not None
    for row, name in enumerate(("age", "income")):
        assert found[row].tolist() == np.histogram(column(data, name).numpy(), edges[row].numpy())[0].tolist()


def test_classes_are_counted_by_name_although_a_client_numbers_them_otherwise() -> None:
    some = table(torch.zeros(4, 4), torch.tensor([0, 0, 1, 0]), ("cat", "dog"))
    other = table(torch.zeros(3, 4), torch.tensor([1, 1, 0]), ("dog", "eel"))
    assert summarize([some, other], OPEN, Request((), ("dog", "cat", "eel"))).labels == {"dog": 2, "cat": 3, "eel": 2}
    with pytest.raises(DataError, match="'eel'"):
        summarize([some, other], OPEN)


def test_a_request_that_a_client_cannot_answer_is_refused() -> None:
    data = table(torch.zeros(4, 4))
    with pytest.raises(DataError, match="no numeric column 'city'"):
        local(data, Request(("age", "city")), OPEN)
    with pytest.raises(DataError, match="has no classes"):
        local(data, Request(("age",), ("a", "b")), OPEN)
    with pytest.raises(ConfigError, match="no split 'test'"):
        local(data, Request(("age",), split="test"), OPEN)
    with pytest.raises(ConfigError, match=r"data\.kind is image"):
        summarize([load(Image(path="bundled:digits"), "class")], OPEN)
    with pytest.raises(DataError, match="different requests"):
        merge(local(data, Request(("age",)), OPEN), local(data, Request(("age", "income")), OPEN))
    with pytest.raises(DataError, match="no client has a row"):
        summarize([single([])], OPEN)
    with pytest.raises(DataError, match="there is no client"):
        summarize([], OPEN)


@pytest.mark.parametrize("edges", [torch.tensor([1.0]), torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3, 2)])
def test_edges_that_make_no_bins_are_refused(edges: Tensor) -> None:
    with pytest.raises(ValueError, match="edges must"):
        Request(("x",), edges=edges)
    with pytest.raises(ValueError, match="at least one column"):
        Request(())


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.floats(-1e300, 1e300), max_size=9), min_size=1, max_size=4).filter(any),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_quantiles_end_at_numpys_whatever_the_range(parts: list[list[float]], wanted: list[float]) -> None:
    rounds = []
    ask = asking([single(part) for part in parts], "x", OPEN)

    def counted(edges: Tensor) -> Tensor:
        rounds.append(len(edges))
        return ask(edges)

    together = np.array([value for part in parts for value in part])
    found = quantiles(counted, wanted, together.min(), together.max())
    scale = np.abs(together).max()
    np.testing.assert_allclose(found, np.quantile(together, wanted), rtol=1e-12, atol=1e-15 * scale)
    assert len(rounds) <= 12


def test_the_quantiles_at_rows_are_exact() -> None:
    values = np.random.default_rng(3).normal(size=101)
    clients = [single(part.tolist()) for part in np.array_split(values, 4)]
    found = quantiles(asking(clients, "x", OPEN), [0, 0.25, 0.5, 1], -10, 10)
    assert found == np.sort(values)[[0, 25, 50, 100]].tolist()


def test_a_tolerance_saves_rounds_and_bounds_the_error() -> None:
    values = np.random.default_rng(4).uniform(0, 100, size=1000)
    rounds = []

    def ask(edges: Tensor) -> Tensor:
        rounds.append(edges)
        return counts(torch.from_numpy(values), edges)

    wanted = [0.1, 0.5, 0.975]
    error = np.array(quantiles(ask, wanted, 0, 100, tolerance=0.01)) - np.quantile(values, wanted)
    assert (error >= -1e-12).all() and (error <= 0.01).all() and error.max() > 1e-9
    assert len(rounds) <= 5


def test_quantiles_refuse_what_they_cannot_find() -> None:
    ask = asking([single([1.0, 2.0, 3.0])], "x", OPEN)
    with pytest.raises(DataError, match="2 rows lie outside"):
        quantiles(ask, [0.5], 1.5, 2.5)
    with pytest.raises(DataError, match="no client has a row"):
        quantiles(asking([single([])], "x", OPEN), [0.5], 0, 1)
    for wanted, low, high, tolerance in (
        ([1.5], 0, 1, 0),
        ([0.5], 1, 0, 0),
        ([0.5], 0, math.inf, 0),
        ([0.5], 0, 1, -1),
    ):
        with pytest.raises(ValueError, match="must"):
            quantiles(ask, wanted, low, high, tolerance)


def test_quantiles_stop_when_a_client_has_left_between_two_rounds() -> None:
    clients = [single([1.0, 2.0]), single([3.0, 4.0, 5.0])]

    def ask(edges: Tensor) -> Tensor:
        answer = asking(clients, "x", OPEN)(edges)
        clients[1:] = []
        return answer

    with pytest.raises(WorkerError, match="5 rows at first, then 2"):
        quantiles(ask, [0.5], 0, 10)
