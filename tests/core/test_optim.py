"""Optimizers against torch.optim and hand-written references, schedules against hand-computed values."""

import math
from copy import deepcopy as copy_of
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import ConfigError, DataError
from core.optim import (
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Linear,
    Lion,
    Muon,
    OptimizerConfig,
    RMSprop,
    WarmupStableDecay,
    flatten,
    restore,
    set_lr,
)
from core.optim.configs import is_hidden_matrix
from core.optim.muon import orthogonalize

ALL: list[OptimizerConfig] = [
    SGD(momentum=0.0),
    SGD(momentum=0.9, nesterov=True, weight_decay=0.1),
    Adam(weight_decay=0.1),
    AdamW(),
    RMSprop(),
    RMSprop(momentum=0.9, weight_decay=0.01),
    Lion(),
    Muon(),
]
NAMES = [f"{type(config).__name__}-{i}" for i, config in enumerate(ALL)]


class Network(nn.Module):
    """Every kind of parameter that an optimizer tells apart; never called."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(5, 8), nn.Linear(8, 6)
        self.wide, self.head = nn.Linear(6, 9), nn.Linear(9, 3)


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network()


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def trajectory(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> list[Tensor]:
    for step in range(first, first + steps):
        gradients(model, step)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "config, reference",
    [
        (SGD(momentum=0.0, weight_decay=0.1, decay_vectors=True), (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1})),
        (SGD(), (torch.optim.SGD, {"lr": 0.1})),
        (SGD(momentum=0.9, nesterov=True), (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True})),
        (Adam(weight_decay=0.1, decay_vectors=True), (torch.optim.Adam, {"lr": 1e-3, "weight_decay": 0.1})),
        (AdamW(betas=(0.8, 0.9), decay_vectors=True), (torch.optim.AdamW, {"lr": 1e-3, "betas": (0.8, 0.9)})),
        (RMSprop(momentum=0.5), (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5})),
    ],
    ids=["sgd", "the default is plain", "nesterov", "adam", "adamw", "rmsprop"],
)
def test_the_trajectory_is_that_of_torch_optim(config: OptimizerConfig, reference: tuple[Any, dict[str, Any]]) -> None:
    ours, theirs = network().double(), network().double()  # in float32 the fused kernels round otherwise, by 1e-7
    cls, options = reference
    ended = trajectory(ours, config.build(ours.named_parameters()), 20)
    expected = trajectory(theirs, cls(theirs.parameters(), foreach=False, **options), 20)
    for a, b in zip(ended, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_lion_follows_algorithm_2_of_its_paper() -> None:
    model, (beta1, beta2), lr, decay = network(), (0.9, 0.99), 1e-2, 0.1
    weights = [p.detach().clone() for p in model.parameters()]
    momenta = [torch.zeros_like(p) for p in weights]
    optimizer = Lion(lr=lr, weight_decay=decay, decay_vectors=True).build(model.named_parameters())
    for step in range(15):
        gradients(model, step)
        optimizer.step()
        for i, p in enumerate(model.parameters()):
            assert p.grad is not None
            update = torch.sign(beta1 * momenta[i] + (1 - beta1) * p.grad)
            weights[i] = weights[i] - lr * (update + decay * weights[i])
            momenta[i] = beta2 * momenta[i] + (1 - beta2) * p.grad
    for p, expected in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8), (1, 1, 7)])
def test_orthogonalization_comes_within_one_percent_of_the_polar_factor(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    assert (s.amin(1) / s.norm(dim=1)).min() > 1e-3  # the interval that the polynomials are made for
    result = orthogonalize(matrices)
    assert (torch.linalg.svdvals(result) - 1).abs().max() < 0.01
    assert (result - u @ vt).abs().max() < 0.01


def test_muon_steps_hidden_matrices_by_the_polar_factor_and_the_rest_by_adamw() -> None:
    model, reference = network(), network()
    lr, decay = 1e-2, 0.1
    trajectory(model, Muon(lr=lr, weight_decay=decay).build(model.named_parameters()), 1)
    for ours, old in ((model.hidden.weight, reference.hidden.weight), (model.wide.weight, reference.wide.weight)):
        assert ours.grad is not None
        u, _, vt = torch.linalg.svd(ours.grad, full_matrices=False)  # the first momentum is a multiple of it
        moved = (ours - old * (1 - lr * decay)).detach() / lr
        torch.testing.assert_close(moved, -0.2 * math.sqrt(max(old.shape)) * (u @ vt), rtol=0, atol=0.01)
    trajectory(reference, torch.optim.AdamW(reference.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=decay), 1)
    for ours, old in ((model.embedding.weight, reference.embedding.weight), (model.head.weight, reference.head.weight)):
        torch.testing.assert_close(ours, old, rtol=1e-6, atol=1e-7)


def test_muon_agrees_in_direction_with_torch_muon_over_many_steps() -> None:
    ours, theirs = nn.Linear(12, 30, bias=False), nn.Linear(12, 30, bias=False)
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    trajectory(ours, Muon(lr=1e-3, weight_decay=0.0).build(nn.ModuleDict({"hidden": ours}).named_parameters()), 8)
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    trajectory(theirs, torch.optim.Muon(theirs.parameters(), **options), 8)
    a, b = ours.weight.detach() - start, theirs.weight.detach() - start
    assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98
    assert 0.8 < a.norm() / b.norm() < 1.25


def test_muon_steps_a_convolution_as_the_matrix_of_its_filters() -> None:
    kernel = nn.Parameter(torch.zeros(4, 3, 2, 2))
    trajectory(nn.ParameterList([kernel]), Muon(lr=1.0, weight_decay=0.0).build([("stem.weight", kernel)]), 1)
    step = kernel.detach().flatten(1) / (0.2 * math.sqrt(12))
    assert (torch.linalg.svdvals(step) - 1).abs().max() < 0.01


def test_muon_takes_hidden_matrices_only() -> None:
    matrix, vector, kernel = (nn.Parameter(torch.zeros(s)) for s in ((3, 3), (3,), (2, 2, 3, 3)))
    assert is_hidden_matrix("network.blocks.0.attention.output.weight", matrix)
    assert is_hidden_matrix("network.stem.weight", kernel)
    assert not is_hidden_matrix("network.norm.weight", vector)
    for name in (
        "network.embedding.weight",
        "network.positions.weight",
        "transformer.wte.weight",
        "network.head.weight",
    ):
        assert not is_hidden_matrix(name, matrix)
    with pytest.raises(ConfigError, match="use adamw"):
        Muon().build([("head.weight", matrix), ("head.bias", vector)])


def test_weight_decay_spares_vectors_unless_asked() -> None:
    def moved_bias(decay_vectors: bool) -> bool:
        layer = nn.Linear(4, 4)
        weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        for p in layer.parameters():
            p.grad = torch.zeros_like(p)
        AdamW(weight_decay=0.5, decay_vectors=decay_vectors).build(layer.named_parameters()).step()
        assert not torch.equal(weight, layer.weight)
        return not torch.equal(bias, layer.bias)

    assert not moved_bias(decay_vectors=False)
    assert moved_bias(decay_vectors=True)


@pytest.mark.parametrize("config", ALL, ids=NAMES)
def test_frozen_parameters_stay_out_and_base_lr_is_in_every_group(config: OptimizerConfig) -> None:
    model = network()
    model.embedding.weight.requires_grad_(False)
    optimizer = config.build(model.named_parameters())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    set_lr(optimizer, 0.25)
    assert all(group["lr"] == 0.25 * config.lr and group["base_lr"] == config.lr for group in optimizer.param_groups)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter to train"):
        config.build(model.named_parameters())


@pytest.mark.parametrize("config", ALL, ids=NAMES)
def test_a_restored_optimizer_goes_on_bit_for_bit(config: OptimizerConfig) -> None:
    model = network()
    optimizer = config.build(model.named_parameters())
    trajectory(model, optimizer, 3)
    copy = network(seed=1)
    copy.load_state_dict(model.state_dict())
    tensors, rest = flatten(optimizer, model.named_parameters())
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    other = config.build(copy.named_parameters())
    restore(other, copy.named_parameters(), saved, rest)
    expected, ended = trajectory(model, optimizer, 4, first=3), trajectory(copy, other, 4, first=3)
    assert all(torch.equal(a, b) for a, b in zip(expected, ended, strict=True))
    again, _ = flatten(other, copy.named_parameters())
    assert set(again) == set(saved)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("config", ALL, ids=NAMES)
def test_torch_state_dicts_work_too(config: OptimizerConfig) -> None:
    model, copy = network(), network(seed=1)
    optimizer = config.build(model.named_parameters())
    trajectory(model, optimizer, 3)
    copy.load_state_dict(model.state_dict())
    other = config.build(copy.named_parameters())
    other.load_state_dict(copy_of(optimizer.state_dict()))  # torch would share the tensors
    expected, ended = trajectory(model, optimizer, 2, first=3), trajectory(copy, other, 2, first=3)
    assert all(torch.equal(a, b) for a, b in zip(expected, ended, strict=True))


def test_state_is_named_by_parameter_so_order_does_not_matter() -> None:
    model = network()
    optimizer = AdamW().build(model.named_parameters())
    trajectory(model, optimizer, 2)
    tensors, rest = flatten(optimizer, model.named_parameters())
    assert {"hidden.weight/exp_avg", "head.bias/exp_avg_sq", "wide.bias/step"} <= set(tensors)
    backwards = list(model.named_parameters())[::-1]
    other = AdamW().build(backwards)
    restore(other, backwards, tensors, rest)
    assert torch.equal(other.state[model.wide.weight]["exp_avg"], optimizer.state[model.wide.weight]["exp_avg"])


def test_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    model = network()
    named = list(model.named_parameters())
    optimizer = AdamW().build(named)
    trajectory(model, optimizer, 1)
    tensors, rest = flatten(optimizer, named)
    fresh = AdamW().build(named)
    missing = {name: t for name, t in tensors.items() if name != "head.weight/exp_avg"}
    bad_shape = tensors | {"head.weight/exp_avg": torch.zeros(2, 2)}
    extra = tensors | {"tail.weight/exp_avg": torch.zeros(2, 2)}
    for wrong, said in (
        (missing, "lacks the tensor head.weight/exp_avg"),
        (bad_shape, "has shape"),
        (extra, "unknown"),
    ):
        with pytest.raises(DataError, match=said):
            restore(fresh, named, wrong, rest)
    with pytest.raises(DataError, match="saved by AdamW, this run has SGD with momentum"):
        restore(SGD(momentum=0.9).build(named), named, tensors, rest)
    smaller = [(name, p) for name, p in named if not name.startswith("head")]
    with pytest.raises(DataError, match=r"of another model: it has head\.bias and 1 more"):
        restore(AdamW().build(smaller), smaller, tensors, rest)
    of_smaller = flatten(AdamW().build(smaller), smaller)
    with pytest.raises(DataError, match="is missing for"):
        restore(fresh, named, *of_smaller)
    assert not fresh.state


@pytest.mark.parametrize(
    "cls, options, field",
    [
        (SGD, {"lr": 0.0}, "lr"),
        (SGD, {"momentum": 1.0}, "momentum"),
        (SGD, {"momentum": 0.0, "nesterov": True}, "nesterov"),
        (Adam, {"betas": (0.9, 1.0)}, "betas"),
        (AdamW, {"lr": math.nan}, "lr"),
        (AdamW, {"weight_decay": -0.1}, "weight_decay"),
        (RMSprop, {"alpha": 1.5}, "alpha"),
        (RMSprop, {"eps": 0.0}, "eps"),
        (Lion, {"lr": math.inf}, "lr"),
        (Muon, {"momentum": -0.1}, "momentum"),
        (Constant, {"warmup": -1}, "warmup"),
        (Cosine, {"final": 1.5}, "final"),
        (WarmupStableDecay, {"decay": 0.0}, "decay"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_name(cls: Any, options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} "):
        cls(**options)


def test_schedules_give_the_values_computed_by_hand() -> None:
    assert [Constant(warmup=4).factor(s, 10) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    linear = Linear(warmup=2, final=0.5)
    assert [linear.factor(s, 6) for s in range(6)] == [0.5, 1, 1, 0.875, 0.75, 0.625]
    cosine = Cosine(final=0.1)
    assert cosine.factor(0, 4) == 1
    assert cosine.factor(2, 4) == pytest.approx(0.55)
    assert cosine.factor(1, 4) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    wsd = WarmupStableDecay(warmup=2, decay=0.4)
    expected = [0.5, 1, 1, 1, 1, 1, 1, 1 - 0.25**0.5, 1 - 0.5**0.5, 1 - 0.75**0.5]
    assert [wsd.factor(s, 10) for s in range(10)] == pytest.approx(expected)


@pytest.mark.parametrize("kind", [Constant, Linear, Cosine, WarmupStableDecay])
def test_the_rate_is_above_zero_at_every_step_and_never_above_one(kind: Any) -> None:
    for steps in (1, 2, 7, 50):
        for warmup in {0, steps // 3}:
            factors = [kind(warmup=warmup).factor(step, steps) for step in range(steps)]
            assert all(0 < factor <= 1 for factor in factors)
            assert max(factors) == 1


def test_a_warmup_longer_than_the_run_is_refused() -> None:
    for schedule in (Constant(warmup=11), Linear(warmup=11), Cosine(warmup=11), WarmupStableDecay(warmup=9)):
        with pytest.raises(ConfigError, match=r"schedule\.warmup.*train\.steps 10"):
            schedule.factor(0, 10)
