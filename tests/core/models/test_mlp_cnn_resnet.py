"""Feed-forward networks against the same network written with torch.nn."""

import pytest
import torch
from torch import nn

from core.data.spec import Spec
from core.models import CNN, MLP, ResNet

IMAGE = Spec("image", (1, 8, 8), 10, "class")


def carry_over(source: nn.Module, target: nn.Module) -> None:
    """Copies parameters in order of definition."""
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        assert a.shape == b.shape
        b.data.copy_(a.data)


def test_an_mlp_is_linear_layers_with_activations_between() -> None:
    network = MLP(hidden=(16, 12), activation="tanh").build(Spec("table", (5,), 3, "class"))
    reference = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
    carry_over(network, reference)
    x = torch.randn(4, 5)
    assert torch.allclose(network(x), reference(x), atol=1e-6)


def test_a_cnn_is_convolution_norm_relu_pool() -> None:
    network = CNN(channels=(8, 16), hidden=32).build(IMAGE)
    reference = nn.ModuleDict(
        {
            "convolutions": nn.ModuleList(
                [nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.Conv2d(8, 16, 3, padding=1, bias=False)]
            ),
            "norms": nn.ModuleList([nn.GroupNorm(8, 8), nn.GroupNorm(8, 16)]),
            "hidden": nn.Linear(64, 32),
            "head": nn.Linear(32, 10),
        }
    )
    reference.load_state_dict(network.state_dict())
    x = torch.randn(3, 1, 8, 8)
    y = x
    for convolution, norm in zip(reference["convolutions"], reference["norms"], strict=True):
        y = nn.functional.max_pool2d(norm(convolution(y)).relu(), 2)
    y = reference["head"](reference["hidden"](y.flatten(1)).relu())
    assert torch.allclose(network(x), y, atol=1e-6)


@pytest.mark.parametrize("norm, bias", [("group", False), ("batch", False), ("none", True)])
def test_only_a_convolution_without_a_norm_has_a_bias(norm: str, bias: bool) -> None:
    for config in (CNN(norm=norm), ResNet(norm=norm, width=8, depth=1)):  # type: ignore[arg-type]
        convolutions = [m for m in config.build(IMAGE).modules() if isinstance(m, nn.Conv2d)]
        assert convolutions and all((m.bias is not None) == bias for m in convolutions)


def test_a_resnet_18_has_the_parameters_of_a_resnet_18() -> None:
    network = ResNet(width=64, depth=2, stages=4, stem="large", norm="batch").build(
        Spec("image", (3, 224, 224), 1000, "class")
    )
    assert sum(p.numel() for p in network.parameters()) == 11_689_512  # torchvision's


@pytest.mark.parametrize("norm", ["group", "none"])
def test_a_fresh_residual_block_is_its_shortcut(norm: str) -> None:
    block = ResNet(width=8, depth=1, stages=1, norm=norm).build(IMAGE).blocks[0]  # type: ignore[arg-type]
    x = torch.rand(2, 8, 8, 8)
    assert torch.equal(block(x), x)


def test_each_stage_of_a_resnet_halves_the_image_and_doubles_the_channels() -> None:
    network = ResNet(width=4, depth=2, stages=3).build(IMAGE)
    assert network.blocks(torch.zeros(1, 4, 8, 8)).shape == (1, 16, 2, 2)
