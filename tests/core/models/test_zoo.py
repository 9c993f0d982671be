"""What every network of the zoo promises: it refuses bad configs, treats examples apart, and runs under vmap."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.data.spec import Spec
from core.errors import ConfigError
from core.models import CNN, GPT, MLP, Recurrent, ResNet
from core.models.layers import Dropout

TABLE = Spec("table", (6,), 3, "class")
REAL = Spec("table", (6,), 2, "real")
IMAGE = Spec("image", (2, 9, 8), 4, "class")
TEXT = Spec("text", (7,), 11, "token")

SMALL_GPT = {"width": 16, "layers": 2, "heads": 4, "dropout": 0.1}
ZOO: dict[str, tuple[Any, Spec]] = {
    "mlp-table": (MLP(hidden=(8,), dropout=0.1), TABLE),
    "mlp-real": (MLP(hidden=(8, 4), activation="gelu"), REAL),
    "mlp-image": (MLP(hidden=()), IMAGE),
    "cnn": (CNN(channels=(4, 8), hidden=8, dropout=0.1), IMAGE),
    "cnn-none": (CNN(channels=(4,), hidden=0, norm="none", pool="average"), IMAGE),
    "cnn-batch": (CNN(channels=(4,), hidden=8, norm="batch", pool="none"), IMAGE),
    "resnet": (ResNet(width=4, depth=1, stages=2, dropout=0.1), IMAGE),
    "resnet-large": (ResNet(width=4, depth=2, stages=1, stem="large", norm="none"), IMAGE),
    "resnet-batch": (ResNet(width=4, depth=1, stages=2, norm="batch"), IMAGE),
    "rnn-table": (Recurrent(cell="rnn", hidden=5), REAL),
    "gru-image": (Recurrent(cell="gru", hidden=5, layers=2, dropout=0.1), IMAGE),
    "lstm-text": (Recurrent(hidden=6, width=5, layers=2, dropout=0.1), TEXT),
    "gpt-llama": (GPT(**SMALL_GPT, kv_heads=2), TEXT),
    "gpt-2": (GPT(**SMALL_GPT, positions="learned", norm="layernorm", activation="gelu_tanh", bias=True), TEXT),
    "gpt-sinusoidal": (GPT(**SMALL_GPT, positions="sinusoidal", activation="gelu", tie=False), TEXT),
}
everywhere = pytest.mark.parametrize("name", ZOO)


def build(name: str, seed: int = 0) -> tuple[nn.Module, Spec]:
    config, spec = ZOO[name]
    torch.manual_seed(seed)
    network = config.build(spec)
    for salt, dropout in enumerate(m for m in network.modules() if isinstance(m, Dropout)):
        dropout.salt = salt
    return network, spec


def inputs_of(spec: Spec, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if spec.kind == "text":
        return torch.randint(spec.outputs, (count, *spec.shape), generator=generator)
    return torch.randn(count, *spec.shape, generator=generator)


@everywhere
def test_outputs_have_the_shape_that_the_data_asks_for(name: str) -> None:
    network, spec = build(name)
    outputs = network(inputs_of(spec, 3))
    assert outputs.shape == ((3, 7, 11) if spec.kind == "text" else (3, spec.outputs))
    assert outputs.isfinite().all()


@everywhere
def test_every_parameter_learns(name: str) -> None:
    network, spec = build(name)
    for module in network.modules():  # a zero last norm hides the gradient of what is before it
        if isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight)
    network(inputs_of(spec, 3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("name", [name for name in ZOO if "batch" not in name])
def test_an_example_gets_the_same_output_whatever_its_batch_mates(name: str) -> None:
    network, spec = build(name)
    x, key = inputs_of(spec, 5), torch.arange(5) + 100
    for k in (None, key):
        alone = torch.cat([network(x[i : i + 1], None if k is None else k[i : i + 1]) for i in range(5)])
        assert torch.allclose(network(x, k), alone, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, (config, _) in ZOO.items() if config.dropout])
def test_dropout_acts_only_with_a_key_and_follows_it(name: str) -> None:
    network, spec = build(name)
    x = inputs_of(spec, 16)
    key = torch.arange(16) * 1000
    noisy = network(x, key)
    assert torch.equal(noisy, network(x, key))
    assert not torch.allclose(noisy, network(x))
    assert not torch.allclose(noisy, network(x, key + 1))


def test_a_dropout_layer_drops_its_share_and_keeps_type_and_mean() -> None:
    layer = Dropout(0.25)
    x = torch.ones(64, 1000, dtype=torch.bfloat16)
    y = layer(x, torch.arange(64))
    assert y.dtype == x.dtype
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert y.float().mean().item() == pytest.approx(1, abs=0.01)
    layer.salt = 1
    assert not torch.equal(y, layer(x, torch.arange(64)))


@everywhere
def test_vmap_over_members_gives_what_each_member_gives_alone(name: str) -> None:
    networks, spec = [build(name, seed)[0] for seed in range(3)], ZOO[name][1]
    x, key = inputs_of(spec, 4), torch.arange(4) + 7

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], k: Tensor) -> Tensor:
        output = functional_call(networks[0], (parameters, buffers), (x, k))
        return F.cross_entropy(output.flatten(0, -2), torch.zeros(output.flatten(0, -2).shape[0], dtype=torch.long))

    expected = []
    for i, network in enumerate(networks):
        output = network(x, key + i).flatten(0, -2)
        F.cross_entropy(output, torch.zeros(len(output), dtype=torch.long)).backward()
        expected.append({n: p.grad for n, p in network.named_parameters()})
    parameters, buffers = stack_module_state(networks)
    with sdpa_kernel(SDPBackend.MATH):
        keys = torch.stack([key, key + 1, key + 2])
        gradients = vmap(grad(loss), in_dims=(0, 0, 0))({n: p.detach() for n, p in parameters.items()}, buffers, keys)
    for n, gradient in gradients.items():
        assert torch.allclose(gradient, torch.stack([e[n] for e in expected]), atol=2e-6, rtol=1e-4), n


@pytest.mark.parametrize(
    "config, field, value",
    [
        (MLP, "hidden", (8, 0)),
        (MLP, "activation", "rleu"),
        (MLP, "dropout", 1.5),
        (MLP, "dropout", float("nan")),
        (CNN, "channels", ()),
        (CNN, "channels", (4, -1)),
        (CNN, "kernel", 4),
        (CNN, "norm", "layer"),
        (CNN, "pool", "median"),
        (CNN, "hidden", -1),
        (CNN, "dropout", -0.1),
        (ResNet, "width", 0),
        (ResNet, "depth", 0),
        (ResNet, "stages", 0),
        (ResNet, "norm", "rms"),
        (ResNet, "stem", "medium"),
        (ResNet, "dropout", 1.0),
        (Recurrent, "cell", "sru"),
        (Recurrent, "layers", 0),
        (Recurrent, "hidden", 0),
        (Recurrent, "width", 0),
        (Recurrent, "dropout", 1.0),
        (GPT, "width", 0),
        (GPT, "layers", 0),
        (GPT, "heads", 5),
        (GPT, "heads", 64),
        (GPT, "kv_heads", 4),
        (GPT, "kv_heads", 0),
        (GPT, "hidden", 0),
        (GPT, "positions", "alibi"),
        (GPT, "norm", "group"),
        (GPT, "activation", "relu"),
        (GPT, "dropout", 2.0),
        (GPT, "rope_theta", 0.0),
        (GPT, "norm_eps", -1.0),
    ],
)
def test_a_bad_value_is_refused_by_its_name(config: Callable[..., object], field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must") as caught:
        config(**{field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config, spec",
    [
        (MLP(), TEXT),
        (CNN(), TABLE),
        (CNN(channels=(4,) * 4), IMAGE),
        (ResNet(), TEXT),
        (Recurrent(), Spec("text", (7,), 2, "class")),
        (GPT(), IMAGE),
    ],
)
def test_data_that_does_not_fit_is_refused_in_one_line(config: Any, spec: Spec) -> None:
    with pytest.raises(ConfigError, match=r"^model\.") as caught:
        config.build(spec)
    assert "\n" not in str(caught.value)
