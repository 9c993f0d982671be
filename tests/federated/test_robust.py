"""Robust strategies against plain loops and brute force, and against clients that send anything."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from core.config import dump, parse
from core.errors import ConfigError, WorkerError
from core.optim.stacked import Layout, Place
from core.population.frame import Frame
from core.randomness import generator
from federated.exchange import UPDATE, Order, Reply, Total, Update, collects
from federated.strategies.norm_bounding import NormBounding
from federated.strategies.robust.bulyan import Bulyan
from federated.strategies.robust.centered_clipping import CenteredClipping
from federated.strategies.robust.geometric_median import GeometricMedian
from federated.strategies.robust.krum import Krum, MultiKrum
from federated.strategies.robust.median import Median
from federated.strategies.robust.neighbors import BLOCK, distances_to, mix, squared_distances
from federated.strategies.robust.rule import Robust, by_content
from federated.strategies.robust.trimmed_mean import TrimmedMean

RULES = [Median, TrimmedMean, Krum, MultiKrum, Bulyan, GeometricMedian, CenteredClipping]
every_rule = pytest.mark.parametrize("rule", RULES)
FRAME = Frame(Layout((Place("network.w", torch.Size([4]), 0, 4),), 0, 4), (Place("network.b", torch.Size([1]), 4, 5),))
either_mixing = pytest.mark.parametrize("mix_neighbors", [False, True])


def normal(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator("robust", key))


def combined(rule: Robust, updates: Tensor) -> Tensor:
    return rule.combine(updates, torch.ones(len(updates), dtype=torch.float64), {})


def plain_squares(rows: np.ndarray) -> np.ndarray:
    return np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])


def plain_score(rows: np.ndarray, i: int, byzantine: int) -> float:
    """By all subsets: the smallest sum of squared distances to n - f - 2 others."""
    others = [((rows[i] - rows[j]) ** 2).sum() for j in range(len(rows)) if j != i]
    count = max(1, len(rows) - byzantine - 2)
    return min((sum(some) for some in itertools.combinations(others, count)), default=0.0)


# --- each rule against its definition ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 7, 10])
def test_the_median_is_numpys(count: int) -> None:
    updates = normal(count, 50)
    assert torch.equal(combined(Median(), updates), torch.from_numpy(np.median(updates.double().numpy(), 0)).float())


@pytest.mark.parametrize("byzantine", [0, 1, 3])
def test_the_trimmed_mean_leaves_out_as_many_as_it_says_on_either_side(byzantine: int) -> None:
    updates = normal(8, 50)
    kept = np.sort(updates.double().numpy(), axis=0)[byzantine : 8 - byzantine]
    assert torch.allclose(combined(TrimmedMean(byzantine=byzantine), updates).double(), torch.from_numpy(kept.mean(0)))


@pytest.mark.parametrize("count, byzantine", [(3, 0), (5, 1), (8, 1), (9, 3)])
def test_krum_takes_the_update_with_the_smallest_score_of_all_subsets(count: int, byzantine: int) -> None:
    updates = normal(count, 4, key=count)
    rows = updates.double().numpy()
    result = combined(Krum(byzantine=byzantine), updates)
    (taken,) = (updates == result).all(dim=1).nonzero()[:, 0].tolist()
    scores = [plain_score(rows, i, byzantine) for i in range(count)]
    assert scores[taken] == pytest.approx(min(scores))


@pytest.mark.parametrize("select", [None, 1, 3])
def test_multi_krum_is_the_mean_of_those_with_the_smallest_scores(select: int | None) -> None:
    updates = normal(9, 4, key=7)
    rows = updates.double().numpy()
    best = np.argsort([plain_score(rows, i, 2) for i in range(9)])[: select or 9 - 2 - 2]
    result = combined(MultiKrum(byzantine=2, select=select), updates)
    assert torch.allclose(result.double(), torch.from_numpy(rows[best].mean(0)), atol=1e-6)


@pytest.mark.parametrize("count, byzantine", [(3, 0), (7, 1), (8, 1), (12, 2)])
def test_bulyan_is_what_plain_loops_of_the_paper_give(count: int, byzantine: int) -> None:
    updates = normal(count, 6, key=20 + count)
    rows = updates[by_content(updates)].double().numpy()  # towards the end pairs tie, and the first one is taken
    left, chosen = list(range(count)), []
    for _ in range(count - 2 * byzantine):
        scores = [plain_score(rows[left], i, byzantine) for i in range(len(left))]
        chosen.append(left.pop(int(np.argmin(scores))))
    expected = []
    for column in rows[chosen].T:
        away = abs(column - np.median(column))
        expected.append(column[np.argsort(away, kind="stable")[: count - 4 * byzantine]].mean())
    assert torch.allclose(combined(Bulyan(byzantine=byzantine), updates).double(), torch.tensor(expected), atol=1e-6)


def test_the_geometric_median_is_where_a_long_gradient_descent_ends() -> None:
    updates = normal(7, 3, key=3) + torch.tensor([0.0, 2.0, -1.0])
    point = updates.double().mean(0)
    for step in range(20_000):
        away = point - updates.double()
        point = point - 0.1 / (1 + step / 100) * (away / away.norm(dim=1, keepdim=True)).sum(0)
    assert torch.allclose(combined(GeometricMedian(), updates).double(), point, atol=1e-4)


def test_the_geometric_median_of_a_majority_at_one_point_is_that_point() -> None:
    updates = torch.cat([torch.ones(5, 3), normal(4, 3)])
    assert torch.allclose(combined(GeometricMedian(), updates), torch.ones(3), atol=1e-5)


def test_centered_clipping_moves_its_center_by_the_mean_of_what_is_cut_to_the_radius() -> None:
    # from 0 with radius 1: [3, 4] counts as [.6, .8], [0, .5] as it is, [-2, 0] as [-1, 0]; the mean is [-.4, 1.3] / 3
    updates = torch.tensor([[3.0, 4.0], [0.0, 0.5], [-2.0, 0.0]])
    result = combined(CenteredClipping(radius=1.0, iterations=1), updates)
    assert torch.allclose(result, torch.tensor([-0.4, 1.3]) / 3)


def test_centered_clipping_begins_where_the_last_round_went() -> None:
    rule, updates = CenteredClipping(radius=0.5, iterations=1), normal(5, 4) + 10
    one = Total()
    one.add(Reply(0, 1.0, {UPDATE: torch.full((4,), 10.0)}))
    weights, server = rule.step(torch.zeros(4), rule.begin(torch.zeros(4), FRAME), one, clients=5)
    assert torch.equal(weights, torch.full((4,), 10.0)) and torch.equal(server["center"], weights)
    away = updates.double() - 10
    cut = away * (0.5 / away.norm(dim=1, keepdim=True)).clamp(max=1)
    result = rule.combine(updates, torch.ones(5), server)
    assert torch.allclose(result.double(), 10 + cut.mean(0))
    assert not torch.allclose(combined(rule, updates), result)


def test_mixing_replaces_each_update_by_the_mean_of_its_nearest() -> None:
    updates = normal(7, 5, key=9)
    rows, mixed = updates.double().numpy(), updates.clone()
    mix(mixed, 2)
    for row, result in zip(rows, mixed, strict=True):
        nearest = sorted(rows, key=lambda other, row=row: ((row - other) ** 2).sum())[:5]
        assert torch.allclose(result.double(), torch.from_numpy(np.mean(nearest, axis=0)), atol=1e-6)


@every_rule
def test_mixing_comes_before_the_rule(rule: type[Robust]) -> None:
    updates = normal(9, 6, key=5)
    before, config = updates.clone(), rule(mix_neighbors=True)
    mix(rows := updates[by_content(updates)], 1)
    assert torch.equal(combined(config, updates), config.rule(rows, {}).float())
    assert not torch.equal(combined(config, updates), combined(rule(), updates))
    assert torch.equal(updates, before)  # what the caller holds stays as it is


# --- distances -----------------------------------------------------------------------------------------------------


def test_distances_are_exact_where_updates_are_long_and_close_and_run_over_many_blocks() -> None:
    wide = 2 * BLOCK // 4 + 3
    rows = (4500 / wide**0.5 + 1e-6 * normal(4, wide)).float()
    expected = torch.from_numpy(plain_squares(rows.double().numpy()))
    assert torch.allclose(squared_distances(rows), expected, rtol=1e-10, atol=0)
    assert torch.allclose(distances_to(rows[1].double(), rows), expected[1].sqrt(), rtol=1e-10)


@pytest.mark.parametrize("rule", [Median(byzantine=2), TrimmedMean(byzantine=2)])
def test_updates_of_many_blocks_are_combined_like_their_parts(rule: Robust) -> None:
    updates = normal(7, BLOCK // 2)
    parts = [combined(rule, part) for part in updates.split(1000, dim=1)]
    assert torch.equal(combined(rule, updates), torch.cat(parts))


def test_mixing_and_choosing_run_over_many_blocks() -> None:
    updates = normal(7, BLOCK // 2)
    mix(mixed := updates.clone(), 0)
    assert torch.allclose(mixed, updates.mean(0).expand_as(mixed), atol=1e-6)
    taken = combined(MultiKrum(byzantine=2, select=1), updates)
    assert (updates == taken).all(dim=1).sum() == 1


# --- what every rule must do ---------------------------------------------------------------------------------------


@every_rule
@either_mixing
def test_the_order_of_replies_changes_no_bit_even_where_scores_tie(rule: type[Robust], mix_neighbors: bool) -> None:
    grid = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))  # a cube: every score has its equals
    for updates in (grid, normal(11, 4), grid[[0, 0, 1, 1, 2, 4, 7]]):
        config = rule(mix_neighbors=mix_neighbors)
        first = combined(config, updates)
        for key in range(5):
            order = torch.randperm(len(updates), generator=generator("order", key))
            assert torch.equal(combined(config, updates[order]), first)


@every_rule
@either_mixing
@pytest.mark.parametrize("size", [1e6, 1e30])
def test_attackers_do_not_pull_the_result_out_of_the_honest_range(
    rule: type[Robust], mix_neighbors: bool, size: float
) -> None:
    honest = normal(9, 20)
    config = rule(byzantine=2, mix_neighbors=mix_neighbors)
    for evil in (torch.full((2, 20), size), size * normal(2, 20, key=1), torch.tensor([[size], [-size]]).expand(2, 20)):
        result = combined(config, torch.cat([evil, honest]))
        slack = 0.5 if rule in (CenteredClipping, GeometricMedian) else 1e-5  # these bound a distance, not each number
        assert (result <= honest.max(0).values + slack).all() and (result >= honest.min(0).values - slack).all()


def test_the_plain_mean_is_pulled_out_of_the_honest_range() -> None:
    honest = normal(9, 20)
    assert (torch.cat([honest, torch.full((2, 20), 1e6)]).mean(0) > honest.max(0).values).all()


@every_rule
def test_declared_weights_decide_nothing(rule: type[Robust]) -> None:
    updates = normal(9, 5)
    heavy = torch.tensor([1e9, *[1.0] * 8], dtype=torch.float64)
    assert torch.equal(rule().combine(updates, heavy, {}), combined(rule(), updates))
    reply, mine = rule().reply(Update(3, updates[0], 500, 10, 0.1, 0.1), Order(1, updates[0]), {}, FRAME)
    assert reply.weight == 1.0 and torch.equal(reply.payload[UPDATE], updates[0]) and mine == {}


@every_rule
def test_equal_updates_give_that_update(rule: type[Robust]) -> None:
    same = normal(1, 5).expand(9, 5)
    assert torch.allclose(combined(rule(radius=10.0) if rule is CenteredClipping else rule(), same), same[0])


@every_rule
@pytest.mark.parametrize("byzantine", [0, 1, 3])
def test_too_few_replies_are_refused_before_the_first_round_and_in_any(rule: type[Robust], byzantine: int) -> None:
    config = rule(byzantine=byzantine)
    special = {Krum: 2 * byzantine + 3, MultiKrum: 2 * byzantine + 3, Bulyan: 4 * byzantine + 3}
    least = special.get(rule, 2 * byzantine + 1)
    assert config.needs() == least
    config.require(least)
    assert combined(config, normal(least, 3)).isfinite().all()
    with pytest.raises(ConfigError, match=f"strategy.byzantine: {config.kind} needs {least} replies"):
        config.require(least - 1)
    if least > 1:
        with pytest.raises(WorkerError, match=f"{least - 1} replies came, {least} are needed"):
            combined(config, normal(least - 1, 3))


def test_multi_krum_refuses_to_average_more_than_the_paper_proves() -> None:
    config = MultiKrum(byzantine=2, select=6)
    assert config.needs() == 10
    config.require(10)
    with pytest.raises(ConfigError, match=r"strategy\.select: at most 5 of 9 replies"):
        config.require(9)
    with pytest.raises(ConfigError, match=r"strategy\.byzantine: multi_krum needs 10 replies"):
        config.require(6)


@every_rule
def test_the_server_moves_by_its_rate_times_the_combined_update(rule: type[Robust]) -> None:
    total = Total()
    total.add(Reply(-1, 1.0, {UPDATE: torch.tensor([1.0, -2.0])}))
    moved, _ = rule(server_lr=0.5).step(torch.tensor([1.0, 1.0]), {}, total, clients=9)
    assert torch.equal(moved, torch.tensor([1.5, 0.0])) and moved.dtype == torch.float32


@every_rule
def test_a_robust_strategy_collects_and_its_config_survives_a_file(rule: type[Robust]) -> None:
    config = rule(byzantine=2, mix_neighbors=True)
    assert collects(config) and parse(rule, dump(config)) == config
    assert next(iter(dump(config))) == "kind" and dump(config)["kind"] == config.kind


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Median(byzantine=-1), "byzantine must be 0 or more"),
        (lambda: Median(server_lr=0), "server_lr must be above 0"),
        (lambda: MultiKrum(select=0), "select must be at least 1"),
        (lambda: GeometricMedian(iterations=0), "iterations must be at least 1"),
        (lambda: GeometricMedian(smoothing=0.0), "smoothing must be above 0"),
        (lambda: CenteredClipping(radius=0.0), "radius must be above 0"),
        (lambda: CenteredClipping(iterations=0), "iterations must be at least 1"),
        (lambda: NormBounding(bound=0.0), "bound must be above 0"),
        (lambda: NormBounding(server_lr=float("nan")), "server_lr must be above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# --- norm bounding -------------------------------------------------------------------------------------------------


def test_norm_bounding_scales_the_trainable_part_and_leaves_statistics_alone() -> None:
    rule, vector = NormBounding(bound=2.5), torch.tensor([3.0, 0.0, 4.0, 0.0, 100.0])
    reply, _ = rule.reply(Update(1, vector, 500, 10, 0.1, 0.1), Order(1, vector), {}, FRAME)
    assert torch.allclose(reply.payload[UPDATE], torch.tensor([1.5, 0.0, 2.0, 0.0, 100.0])) and reply.weight == 1.0
    assert not collects(rule)


@pytest.mark.parametrize("vector", [torch.zeros(5), torch.tensor([1.0, 1.0, 1.0, 1.0, 9.0])])
def test_norm_bounding_leaves_short_updates_as_they_are(vector: Tensor) -> None:
    assert torch.equal(NormBounding(bound=2.5).receive(Reply(1, 1.0, {UPDATE: vector}), FRAME).payload[UPDATE], vector)


def test_one_that_does_not_clip_moves_the_mean_by_no_more_than_bound_over_n() -> None:
    rule, honest = NormBounding(bound=1.0), [0.1 * normal(4, key=key) for key in range(9)]
    means = []
    for vector, weight in [(torch.zeros(4), 1.0), (torch.full((4,), 1e6), 1e9)]:
        total = Total()
        for i, update in enumerate([*honest, vector]):
            total.add(rule.receive(Reply(i, weight if i == 9 else 1.0, {UPDATE: update}), FRAME))
        means.append(rule.step(torch.zeros(4), {}, total, 10)[0])
    assert float((means[1] - means[0]).norm()) == pytest.approx(1.0 / 10, rel=1e-5)
