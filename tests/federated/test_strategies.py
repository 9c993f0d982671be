"""Each additive strategy against its paper's update, worked by hand on two trainable numbers and one buffer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import ConfigError
from core.optim.configs import SGD, AdamW
from core.optim.stacked import Layout, Place
from core.population.frame import Frame
from core.randomness import generator
from federated.exchange import UPDATE, Order, Reply, Total, Update, Vectors
from federated.strategies.ditto import Ditto
from federated.strategies.fedavg import FedAvg
from federated.strategies.fedavgm import FedAvgM
from federated.strategies.fedbn import FedBN
from federated.strategies.fedbuff import FedBuff
from federated.strategies.fednova import FedNova, reach
from federated.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from federated.strategies.fedprox import FedProx
from federated.strategies.qfedavg import QFedAvg
from federated.strategies.scaffold import Scaffold

P, D = 2, 3
FRAME = Frame(
    Layout((Place("network.weight", torch.Size([P]), 0, P),), 0, P),
    (Place("network.mean", torch.Size([1]), P, D),),
)
ALL = [
    FedAvgM(),
    FedAdagrad(),
    FedYogi(),
    FedAdam(),
    FedProx(),
    FedNova(momentum=0.5, server_momentum=0.5),
    Scaffold(server_lr=0.5, momentum=0.5),
    QFedAvg(q=2.0),
    FedBN(),
    Ditto(),
    FedBuff(server_lr=0.5, server_momentum=0.5),
]
every_strategy = pytest.mark.parametrize("strategy", ALL, ids=lambda strategy: strategy.kind)


class Federation:
    """A strategy's two halves at work, without any training: clients' updates are given."""

    def __init__(self, strategy: Any, clients: int = 2) -> None:
        self.strategy, self.clients = strategy, clients
        self.round, self.weights = 0, torch.zeros(D)
        self.server: Vectors = strategy.begin(self.weights, FRAME)
        self.mine: dict[int, Vectors] = {}

    def order(self) -> Order:
        return Order(self.round, self.weights, self.strategy.extra(self.server))

    def replies(self, updates: Sequence[Update]) -> list[Reply]:
        replies = []
        for update in updates:
            mine = self.mine.get(update.client, {})
            reply, self.mine[update.client] = self.strategy.reply(update, self.order(), mine, FRAME)
            replies.append(reply)
        return replies

    def step(self, replies: Sequence[Reply]) -> list[float]:
        self.weights, self.server = self.strategy.step(self.weights, self.server, total(replies), self.clients)
        self.round += 1
        return self.weights.tolist()

    def play(self, *updates: Update) -> list[float]:
        """One round; the server's new weights."""
        return self.step(self.replies(updates))


def total(replies: Sequence[Reply]) -> Total:
    result = Total()
    for reply in replies:
        result.add(reply)
    return result


def update(client: int, delta: Sequence[float], examples: int = 1, **others: Any) -> Update:
    numbers = {"steps": 1, "loss": 1.0, "lr": 0.5, "before": 1.0, **others}
    return Update(client, torch.tensor(delta, dtype=torch.float32), examples, **numbers)


def drawn(round: int, clients: int = 4) -> list[Update]:
    """Clients that differ in everything that they can differ in."""
    return [
        update(
            client,
            torch.randn(D, generator=generator("update", round, client)).tolist(),
            client + 1,
            steps=client + 1,
            before=0.5 + client,
        )
        for client in range(clients)
    ]


def local(order: Order, target: float, lr: float, steps: int, pull: Any, start: Tensor | None = None) -> Tensor:
    """The change [D] of SGD on 1/2 (y - target)^2 from the order's weights, or from `start`; the buffer stays."""
    begin = order.weights if start is None else start
    y = begin[:P].clone()
    for _ in range(steps):
        gradient = y - target
        if pull is not None and pull.anchor is not None:
            gradient = gradient + pull.strength * (y - pull.anchor[:P])
        if pull is not None and pull.shift is not None:
            gradient = gradient + pull.shift
        y = y - lr * gradient
    return torch.cat([y - begin[:P], torch.zeros(D - P)])


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_fedavgm_sums_up_mean_updates_in_its_momentum() -> None:
    # d = ([4, 0] + 3 [0, 4]) / 4 = [1, 3] in both rounds: v1 = d, v2 = d / 2 + d; weights move by 2 v
    run = Federation(FedAvgM(server_lr=2.0, server_momentum=0.5))
    both = update(0, [4, 0, 4], 1), update(1, [0, 4, 0], 3)
    assert run.play(*both) == [2, 6, 1]
    assert run.play(*both) == [2 + 3, 6 + 9, 2]
    assert run.server["momentum"].tolist() == [1.5, 4.5]


def test_fedadam_divides_the_first_moment_by_the_root_of_the_second_without_correction() -> None:
    # v begins at tau^2 = 1. d = [1, 7]: m = d / 4, v = (1 + d^2) / 2 = [1, 25], move = m / (sqrt(v) + 1)
    run = Federation(FedAdam(server_lr=1.0, betas=(0.75, 0.5), tau=1.0))
    first = run.play(update(0, [1, 28, 4], 1), update(1, [1, 0, 0], 3))
    assert first == pytest.approx([0.25 / 2, 1.75 / 6, 1])
    # d = [1, 5]: m = [3/16 + 1/4, 21/16 + 5/4], v = [1, 12.5 + 12.5]
    second = run.play(update(0, [4, 5, 4], 1), update(1, [0, 5, 0], 3))
    assert second == pytest.approx([0.125 + 0.4375 / 2, 1.75 / 6 + 2.5625 / 6, 2])
    assert run.server["second"].tolist() == [1, 25]


def test_fedyogi_moves_its_second_moment_by_the_sign_of_what_it_lacks() -> None:
    # v begins at 1. d = [1, 4]: 1 - 1 has no sign, so v = [1, 1 + 16 / 2]; m = d / 4 = [.25, 1]
    run = Federation(FedYogi(server_lr=2.0, betas=(0.75, 0.5), tau=1.0))
    first = run.play(update(0, [2, 0, 2]), update(1, [0, 8, 0]))
    assert first == pytest.approx([2 * 0.25 / 2, 2 * 1 / 4, 1])
    # d = [3, 2]: v = [1 + 9 / 2, 9 - 4 / 2], as 4 < 9; m = [3/16 + 3/4, 3/4 + 1/2]
    second = run.play(update(0, [6, 0, 2]), update(1, [0, 4, 0]))
    moved = [2 * 0.9375 / (math.sqrt(5.5) + 1), 2 * 1.25 / (math.sqrt(7) + 1)]
    assert second == pytest.approx([0.25 + moved[0], 0.5 + moved[1], 2])


def test_fedadagrad_adds_squares_to_its_second_moment() -> None:
    # v begins at 9. d = [4, -4]: v = 25, move = 2 d / (5 + 3). d = [12, 0]: v = [169, 25], move = 2 d / (13 + 3)
    run = Federation(FedAdagrad(server_lr=2.0, tau=3.0))
    assert run.play(update(0, [8, 0, 2]), update(1, [0, -8, 0])) == pytest.approx([1, -1, 1])
    assert run.play(update(0, [24, 5, 2]), update(1, [0, -5, 0])) == pytest.approx([1 + 1.5, -1, 2])


def test_fedadagrad_can_have_a_momentum() -> None:
    # d = 4 twice: m = 2, v = 25, move = 2 / 8; then m = 3, v = 41, move = 3 / (sqrt(41) + 3)
    run = Federation(FedAdagrad(server_lr=1.0, beta=0.5, tau=3.0))
    assert run.play(update(0, [4, 4, 0]))[:P] == pytest.approx([0.25] * 2)
    assert run.play(update(0, [4, 4, 0]))[:P] == pytest.approx([0.25 + 3 / (math.sqrt(41) + 3)] * 2)


def test_fedprox_pulls_clients_to_the_weights_that_they_were_sent() -> None:
    # lr 1/2, mu 1, two steps. Target 4 from 0: g = -4, y = 2; g = -2 + 2, y = 2. Target 0 stays: mean 1
    run, fedprox = Federation(FedProx(mu=1.0)), FedProx(mu=1.0)
    for expected in ([1, 1, 0], [1.5, 1.5, 0]):
        pull = fedprox.pull(run.order(), {}, FRAME)
        deltas = [local(run.order(), target, 0.5, 2, pull).tolist() for target in (4.0, 0.0)]
        assert run.play(update(0, deltas[0]), update(1, deltas[1])) == expected
    # the second round, from 1: target 4: g = -3, y = 2.5; g = -1.5 + 1.5. Target 0: g = 1, y = .5; g = .5 - .5


def test_fednova_lets_a_client_with_more_steps_say_no_more() -> None:
    # |a| = steps: d = (1 [1, 0] / 1 + 3 [0, 9] / 3) / 4 = [1/4, 9/4] with tau_eff = (1 * 1 + 3 * 3) / 4 = 5/2
    run = Federation(FedNova(server_lr=2.0, server_momentum=0.5))
    both = update(0, [1, 0, 4], 1, steps=1), update(1, [0, 9, 0], 3, steps=3)
    assert run.play(*both) == pytest.approx([2 * 0.625, 2 * 5.625, 1])
    assert run.play(*both) == pytest.approx([2 * 0.625 * 2.5, 2 * 5.625 * 2.5, 2])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_reach_of_local_training_is_the_closed_form_of_the_paper(steps: int) -> None:
    rho, alpha = 0.75, 0.125
    assert reach(steps, 0.0) == steps
    assert reach(steps, rho) == pytest.approx((steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho))
    assert reach(steps, 0.0, alpha) == pytest.approx((1 - (1 - alpha) ** steps) / alpha)


def test_the_reach_with_momentum_and_a_pull_is_what_sgd_does_with_them() -> None:
    lr, mu, weight = 0.25, 0.5, torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=0.75)
    for _ in range(5):
        weight.grad = 1 + mu * weight.detach()
        optimizer.step()
    assert weight.item() == pytest.approx(-lr * reach(5, 0.75, lr * mu))


def test_scaffold_shifts_gradients_by_what_is_a_clients_own() -> None:
    # lr 1/2, two steps, so K lr = 1 and c_i+ = c_i - c - dy. From 0: target 4: y = 2, 3 and c_0 = -3; target 0 stays
    run, scaffold = Federation(Scaffold()), Scaffold()
    expected = [([1.5, 1.5, 0], -1.5, (-3.0, 0.0)), ([1.875, 1.875, 0], -0.375, (-2.25, 1.5))]
    for weights, common, own in expected:
        deltas = []
        for client, target in enumerate((4.0, 0.0)):
            pull = scaffold.pull(run.order(), run.mine.get(client, {}), FRAME)
            deltas.append(local(run.order(), target, 0.5, 2, pull).tolist())
        assert run.play(update(0, deltas[0], steps=2), update(1, deltas[1], steps=2)) == weights
        assert run.server["control"].tolist() == [common] * P
        assert tuple(run.mine[client]["control"][0].item() for client in range(2)) == own
    # round 2 from 1.5 with c = -1.5: target 4: shift 1.5, g = -1, y = 2; g = -.5, y = 2.25; c_0 = -3 + 1.5 - .75;
    # target 0: shift -1.5, g = 0; c_1 = 1.5. Then c = -1.5 + (.75 + 1.5) / 2, and the weights 1.5 + .75 / 2


def test_scaffold_moves_its_control_by_the_share_of_clients_that_took_part() -> None:
    # one of four, one step of lr 1/2: c_i = -dy / (1/2) = [-2, 4]; c moves by a quarter of it, the weights by dy / 2
    run = Federation(Scaffold(server_lr=0.5), clients=4)
    assert run.play(update(0, [1, -2, 3])) == [0.5, -1, 3]
    assert run.server["control"].tolist() == [-0.5, 1]


def test_scaffold_with_momentum_still_keeps_a_mean_of_gradients() -> None:
    # two steps of lr 1/2 with momentum 1/2 and the gradient [1, -2]: moved by g / 2 and then by 3/4 g
    run = Federation(Scaffold(momentum=0.5))
    run.play(update(0, [-1.25, 2.5, 0], steps=2))
    assert run.mine[0]["control"].tolist() == [1, -2]


def test_qfedavg_weighs_by_loss_and_divides_by_the_curvature() -> None:
    # q 1, L 2. F = 1, w - w_k = -[3, 4]: Delta = -[6, 8], h = 1 * 100 + 2. F = 2, no move: h = 2 * 2
    run = Federation(QFedAvg(q=1.0))
    first = run.play(update(0, [3, 4, 1], before=1.0), update(1, [0, 0, 0], before=2.0))
    assert first == pytest.approx([6 / 106, 8 / 106, 102 / 106])  # the buffer: a mean with the weights h
    # F = 2: Delta = -2 [6, 8], h = 100 + 4. F = 3: h = 6
    second = run.play(update(0, [3, 4, 0], before=2.0), update(1, [0, 0, 0], before=3.0))
    assert second[:P] == pytest.approx([6 / 106 + 12 / 110, 8 / 106 + 16 / 110])


def test_fedbuff_discounts_old_updates_and_divides_by_their_number() -> None:
    # staleness 3 halves: v = ([2, 0] + [0, 4] / 2) / 2 = [1, 1]; the buffer's mean is (3 + 0 / 2) / 1.5
    run, fedbuff = Federation(FedBuff(server_lr=2.0, server_momentum=0.5)), FedBuff()
    for expected in ([2, 2, 2], [5, 5, 4]):
        fresh, old = run.replies([update(0, [2, 0, 3], 7), update(1, [0, 4, 0], 9)])
        old = replace(old, weight=old.weight * fedbuff.discount(3))
        assert run.step([fresh, old]) == pytest.approx(expected)


def test_ditto_trains_a_model_of_the_clients_own_near_the_shared_one() -> None:
    # lr 1/2, strength 1, one step; the shared model is given. Target 4, order 0: v = 0 - (0 - 4) / 2 = 2
    ditto, target = Ditto(strength=1.0), 4.0
    first = ditto.personal(Order(1, torch.zeros(D)), {})
    assert first is not None and torch.equal(first.start, torch.zeros(D))
    own = first.start + local(Order(1, torch.zeros(D)), target, 0.5, 1, first.pull, first.start)
    assert own.tolist() == [2, 2, 0]
    # order 1: v = 2 - ((2 - 4) + (2 - 1)) / 2 = 2.5
    order = Order(2, torch.ones(D))
    reply, mine = ditto.reply(update(0, [1, 2, 3], 5), order, {"personal": own}, FRAME)
    second = ditto.personal(order, mine)
    assert second is not None
    assert (own + local(order, target, 0.5, 1, second.pull, second.start)).tolist() == [2.5, 2.5, 0]
    assert reply.weight == 5 and reply.payload[UPDATE].tolist() == [1, 2, 3]


# --- limits -----------------------------------------------------------------------------------------------------------


def states(strategy: Any, rounds: Sequence[Sequence[Update]]) -> Tensor:
    run = Federation(strategy, clients=4)
    return torch.tensor([run.play(*updates) for updates in rounds])


@pytest.mark.parametrize(
    "strategy",
    [FedProx(mu=0.0), FedAvgM(server_momentum=0.0), FedBN(), Ditto()],
    ids=lambda strategy: strategy.kind,
)
def test_without_its_own_number_a_strategy_is_fedavg(strategy: Any) -> None:
    rounds = [drawn(1), drawn(2)]
    assert strategy.pull(Order(1, torch.zeros(D)), {}, FRAME) is None
    torch.testing.assert_close(states(strategy, rounds), states(FedAvg(), rounds))


@pytest.mark.parametrize("momentum, mu", [(0.0, 0.0), (0.9, 0.0), (0.0, 0.5), (0.5, 0.5)])
def test_fednova_is_fedavg_where_all_make_as_many_steps(momentum: float, mu: float) -> None:
    rounds = [[replace(one, steps=5) for one in drawn(round)] for round in (1, 2)]
    torch.testing.assert_close(states(FedNova(momentum=momentum, mu=mu), rounds), states(FedAvg(), rounds))


@pytest.mark.parametrize("strategy", [QFedAvg(q=0.0), FedBuff(), Scaffold()], ids=lambda strategy: strategy.kind)
def test_a_strategy_whose_clients_count_once_is_fedavg_of_equal_clients(strategy: Any) -> None:
    rounds = [drawn(1), drawn(2)]
    equal = [[replace(one, examples=1) for one in updates] for updates in rounds]
    torch.testing.assert_close(states(strategy, rounds), states(FedAvg(), equal))


def test_scaffold_with_everybody_keeps_the_mean_of_the_clients_controls() -> None:
    run = Federation(Scaffold(momentum=0.5), clients=4)
    for round in range(1, 6):
        run.play(*drawn(round))
        mean = torch.stack([mine["control"] for mine in run.mine.values()]).mean(0)
        torch.testing.assert_close(run.server["control"], mean)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_scaffold_finds_the_optimum_that_fedavg_misses(momentum: float) -> None:
    # clients a/2 (y - t)^2 with (a, t) = (1, 0) and (3, 4): the sum is least at 12 / 4 = 3
    def ended(strategy: Any) -> float:
        run = Federation(strategy)
        for _ in range(200):
            updates = []
            for client, (a, t) in enumerate([(1.0, 0.0), (3.0, 4.0)]):
                pull = strategy.pull(run.order(), run.mine.get(client, {}), FRAME)
                y, velocity = run.weights[:P], torch.zeros(P)
                for _ in range(5):
                    velocity = momentum * velocity + a * (y - t) + (pull.shift if pull else 0)
                    y = y - 0.1 * velocity
                delta = torch.cat([y - run.weights[:P], torch.zeros(D - P)])
                updates.append(update(client, delta.tolist(), steps=5, lr=0.1))
            run.play(*updates)
        return run.weights[0].item()

    assert ended(Scaffold(momentum=momentum)) == pytest.approx(3, abs=1e-3)
    assert abs(ended(FedAvg()) - 3) > 0.1


def test_fedadam_without_memory_moves_every_number_by_its_sign() -> None:
    run = Federation(FedAdam(server_lr=0.1, betas=(0.0, 0.0), tau=1e-9))
    assert run.play(update(0, [5, -0.01, 2])) == pytest.approx([0.1, -0.1, 2])


def test_a_pull_that_is_on_is_towards_the_orders_trainable_numbers() -> None:
    for strategy in (FedProx(mu=0.25), FedNova(mu=0.25)):
        pull = strategy.pull(Order(1, torch.tensor([1.0, 2.0, 3.0])), {}, FRAME)
        assert pull is not None and pull.anchor is not None and pull.shift is None
        assert pull.strength == 0.25 and pull.anchor.tolist() == [1, 2]


# --- what holds for all -----------------------------------------------------------------------------------------------


@every_strategy
def test_buffers_move_by_the_plain_mean_alone(strategy: Any) -> None:
    # only the buffer moves, as q-FedAvg's mean of it has weights that depend on how far the others do
    still = torch.tensor([0.0] * P + [1.0] * (D - P))
    rounds = [[replace(one, delta=one.delta * still, examples=1, before=1.0) for one in drawn(r)] for r in (1, 2)]
    torch.testing.assert_close(states(strategy, rounds)[:, P:], states(FedAvg(), rounds)[:, P:])


@every_strategy
def test_the_order_of_replies_changes_nothing(strategy: Any) -> None:
    rounds = [drawn(1), drawn(2)]
    torch.testing.assert_close(states(strategy, [updates[::-1] for updates in rounds]), states(strategy, rounds))


@every_strategy
def test_two_partial_totals_merged_are_one(strategy: Any) -> None:
    run = Federation(strategy, clients=4)
    run.play(*drawn(1))
    replies = run.replies(drawn(2))
    merged = strategy.step(run.weights, run.server, total(replies[:1]).merge(total(replies[1:])), 4)
    whole = strategy.step(run.weights, run.server, total(replies), 4)
    torch.testing.assert_close(merged, whole)


@every_strategy
def test_what_is_sent_and_kept_is_float32_of_known_shapes(strategy: Any) -> None:
    run = Federation(strategy, clients=4)
    for round in (1, 2):
        replies = run.replies(drawn(round))
        run.step(replies)
        assert all(tensor.shape in {(D,), ()} for reply in replies for tensor in reply.payload.values())
        kept = [tensor for mine in run.mine.values() for tensor in mine.values()]
        assert bool(kept) <= strategy.is_stateful
        sent = [tensor for reply in replies for tensor in reply.payload.values()]
        tensors = [run.weights, *run.server.values(), *run.order().extra.values(), *kept, *sent]
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
        assert run.weights.shape == (D,)


@every_strategy
def test_a_step_leaves_what_it_was_given_as_it_was(strategy: Any) -> None:
    run = Federation(strategy, clients=4)
    run.play(*drawn(1))
    updates = drawn(2)
    before = [one.delta.clone() for one in updates]
    weights, server = run.weights.clone(), {name: vector.clone() for name, vector in run.server.items()}
    mine = {client: {n: v.clone() for n, v in vectors.items()} for client, vectors in run.mine.items()}
    old = run.mine.copy(), run.server, run.weights
    run.play(*updates)
    torch.testing.assert_close(old, (mine, server, weights), rtol=0, atol=0)
    torch.testing.assert_close([one.delta for one in updates], before, rtol=0, atol=0)


@every_strategy
def test_a_client_that_made_no_step_breaks_nothing(strategy: Any) -> None:
    run = Federation(strategy)
    idle = update(0, [0, 0, 0], steps=0)
    run.play(idle, update(1, [1, 1, 1]))
    run.play(idle)
    tensors = [run.weights, *run.server.values(), *run.mine[0].values()]
    assert all(tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 5.0])
def test_qfedavg_bears_clients_that_have_nothing_to_learn(q: float) -> None:
    run = Federation(QFedAvg(q=q))
    assert run.play(update(0, [0, 0, 0], before=0.0), update(1, [0, 0, 0], before=0.0)) == [0, 0, 0]


def test_a_loss_beyond_all_bounds_is_no_exception_at_the_client() -> None:
    reply, _ = QFedAvg(q=5.0).reply(update(0, [1, 1, 1], before=1e300), Order(1, torch.zeros(D)), {}, FRAME)
    assert not torch.isfinite(reply.payload[UPDATE]).all()  # the inspection of replies finds it


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [FedNova(momentum=0.5), Scaffold(momentum=0.5)], ids=lambda s: s.kind)
def test_who_counts_on_the_local_optimizer_refuses_another(strategy: Any) -> None:
    strategy.require_optimizer(SGD(momentum=0.5))
    with pytest.raises(ConfigError, match=r"^strategy.momentum: must be .*0\.9, got 0\.5"):
        strategy.require_optimizer(SGD(momentum=0.9))
    with pytest.raises(ConfigError, match=r"^optimizer\.nesterov: must be false"):
        strategy.require_optimizer(SGD(momentum=0.5, nesterov=True))
    with pytest.raises(ConfigError, match=rf"^optimizer\.kind: {strategy.kind} counts on .*got adamw"):
        strategy.require_optimizer(AdamW())


@pytest.mark.parametrize(
    "make, field, value",
    [
        (FedAvgM, "server_lr", 0.0),
        (FedAvgM, "server_momentum", 1.0),
        (FedAdagrad, "server_lr", -1.0),
        (FedAdagrad, "beta", 1.0),
        (FedAdagrad, "tau", 0.0),
        (FedYogi, "server_lr", 0.0),
        (FedYogi, "betas", (0.9, 1.0)),
        (FedYogi, "tau", math.nan),
        (FedAdam, "server_lr", math.nan),
        (FedAdam, "betas", (-0.1, 0.9)),
        (FedAdam, "tau", -1.0),
        (FedProx, "mu", -1.0),
        (FedNova, "momentum", 1.0),
        (FedNova, "mu", -0.1),
        (FedNova, "server_lr", 0.0),
        (FedNova, "server_momentum", -0.1),
        (Scaffold, "server_lr", 0.0),
        (Scaffold, "momentum", 1.0),
        (QFedAvg, "q", -0.5),
        (Ditto, "strength", -1.0),
        (FedBuff, "buffer", 0),
        (FedBuff, "concurrency", 0),
        (FedBuff, "server_lr", 0.0),
        (FedBuff, "server_momentum", 1.0),
    ],
)
def test_a_number_out_of_range_is_named(make: Callable[..., Any], field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be .*got"):
        make(**{field: value})
