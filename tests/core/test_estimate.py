"""Cost estimates against counts by hand."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.data.spec import Spec
from core.estimate import estimate, example_batch, peak_flops, peak_of, step_flops, training_bytes
from core.optim import SGD, Adam, Lion, Muon, OptimizerConfig, RMSprop
from core.task import Batch
from tests.core.population.cases import family, members


class Sum(nn.Module):
    """A task of a network alone: the loss of an example is the sum of its outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = self.network(batch["inputs"])
        return outputs.flatten(1).sum(1), batch["weight"]


def mlp() -> Sum:
    return Sum(nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4)))


TABLE = Spec("table", (10,), 4, "class")
MLP_PARAMETERS = 10 * 32 + 32 + 32 * 4 + 4


def test_an_mlp_costs_what_its_shapes_say() -> None:
    costs = estimate(mlp(), example_batch(TABLE, 8), Adam(), batch_size=24)
    assert costs.parameters == costs.trainable == MLP_PARAMETERS
    assert costs.flops == 3 * 24 * 2 * (10 * 32 + 32 * 4)
    assert costs.weights_bytes == costs.gradients_bytes == 4 * MLP_PARAMETERS
    assert costs.optimizer_bytes == 2 * 4 * MLP_PARAMETERS
    assert costs.activations_bytes == 4 * 8 * 32  # the ReLU's output, which the second layer keeps too
    assert costs.memory_bytes == 4 * (4 * MLP_PARAMETERS) + 4 * 8 * 32


def test_a_convolution_costs_what_its_shapes_say() -> None:
    task = Sum(nn.Conv2d(3, 5, 3, padding=1))
    costs = estimate(task, example_batch(Spec("image", (3, 8, 8), 5, "class"), 2), SGD(), batch_size=2)
    assert costs.parameters == 5 * 3 * 9 + 5
    assert costs.flops == 3 * 2 * 2 * (5 * 3 * 9) * 8 * 8
    assert costs.activations_bytes == 0  # it keeps its input, which is the batch's


def test_attention_costs_two_products_of_sequence_by_sequence() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    batch = example_batch(Spec("image", (4, 16, 8), 2, "class"), 3)  # [3, 4 heads, 16 tokens, 8]
    batch["inputs"].requires_grad_(True)
    task = Sum(Attention())
    task.register_parameter("spare", nn.Parameter(torch.zeros(1)))
    costs = estimate(task, batch, SGD(), batch_size=3)
    assert costs.flops == 3 * 3 * 4 * 2 * (2 * 16 * 16 * 8)
    assert costs.activations_bytes == 4 * 3 * 4 * 16 * (8 + 1)  # the output and one log-sum-exp per query: no [T, T]


def test_a_recurrence_costs_its_four_gates_at_every_step() -> None:
    class Recurrence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            outputs, _ = self.rnn(x)
            return torch.as_tensor(outputs)

    batch = example_batch(Spec("image", (5, 6), 2, "class"), 3)  # [3, 5 steps, 6]
    assert estimate(Sum(Recurrence()), batch, SGD(), batch_size=3).flops == 3 * 3 * 5 * 2 * (4 * 8 * (6 + 8))


def test_half_precision_halves_the_activations_only() -> None:
    full = estimate(mlp(), example_batch(TABLE, 8), Adam(), 8)
    half = estimate(mlp(), example_batch(TABLE, 8), Adam(), 8, precision="bf16")
    assert half.activations_bytes * 2 == full.activations_bytes
    assert (half.flops, half.weights_bytes, half.optimizer_bytes) == (
        full.flops,
        full.weights_bytes,
        full.optimizer_bytes,
    )


@pytest.mark.parametrize(
    "config, slots",
    [(SGD(), 0), (SGD(momentum=0.9), 1), (Lion(), 1), (RMSprop(), 1), (RMSprop(momentum=0.9), 2), (Adam(), 2)],
)
def test_optimizer_state_is_counted_as_the_optimizer_makes_it(config: OptimizerConfig, slots: int) -> None:
    assert estimate(mlp(), example_batch(TABLE, 2), config, 2).optimizer_bytes == slots * 4 * MLP_PARAMETERS


def test_muon_keeps_one_momentum_for_matrices_and_two_averages_for_the_rest() -> None:
    matrices, vectors = 10 * 32 + 32 * 4, 32 + 4
    assert estimate(mlp(), example_batch(TABLE, 2), Muon(), 2).optimizer_bytes == 4 * (matrices + 2 * vectors)


def test_frozen_parameters_cost_no_gradient_and_no_state() -> None:
    task = mlp()
    task.network.get_parameter("0.weight").requires_grad_(False)
    costs = estimate(task, example_batch(TABLE, 2), Adam(), 2)
    assert (costs.parameters, costs.trainable) == (MLP_PARAMETERS, MLP_PARAMETERS - 320)
    assert costs.gradients_bytes == 4 * costs.trainable
    assert costs.optimizer_bytes == 8 * costs.trainable


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "cnn batch norm", "resnet", "gru", "gpt"])
def test_a_pass_that_is_run_keeps_what_was_estimated(name: str, precision: str) -> None:
    (one,) = members(family(name), [{}])
    task, batch = one.recipe.build(one.shard.spec), example_batch(one.shard.spec, 5)
    before = {key: tensor.clone() for key, tensor in task.state_dict().items()}
    found = training_bytes(task, batch, one.recipe.optimizer, precision, torch.device("cpu"))
    assert found == estimate(task, batch, one.recipe.optimizer, 5, precision).memory_bytes
    assert all(torch.equal(tensor, before[key]) for key, tensor in task.state_dict().items())


def test_an_estimate_leaves_the_task_as_it_was() -> None:
    task = mlp().eval()
    before = [p.detach().clone() for p in task.parameters()]
    estimate(task, {"inputs": torch.randn(2, 10), "weight": torch.ones(2)}, Adam(), 2)
    assert not task.training
    assert all(
        torch.equal(a, b) and p.grad is None
        for a, b, p in zip(before, task.parameters(), task.parameters(), strict=True)
    )


def test_the_flops_of_a_recipe_are_those_of_its_task_at_its_batch_size() -> None:
    @dataclass
    class Recipe:  # what an estimate reads of a recipe
        optimizer: OptimizerConfig
        train: Any

        def outline(self, spec: Spec) -> nn.Module:
            return mlp()

    recipe: Any = Recipe(Adam(), SimpleNamespace(batch_size=10))
    costs = estimate(mlp(), example_batch(TABLE, 3), Adam(), batch_size=10)  # micro-batches of 3, 3, 2, 2
    assert step_flops(recipe, TABLE) == costs.flops == 3 * 10 * 2 * (10 * 32 + 32 * 4)


def test_example_batches_have_the_shapes_of_the_spec() -> None:
    def shape(spec: Spec) -> list[Any]:
        batch = example_batch(spec, 3)
        return [
            tuple(batch["inputs"].shape),
            batch["inputs"].dtype,
            tuple(batch["targets"].shape),
            batch["targets"].dtype,
        ]

    assert shape(TABLE) == [(3, 10), torch.float32, (3,), torch.int64]
    assert shape(Spec("table", (10,), 2, "real")) == [(3, 10), torch.float32, (3, 2), torch.float32]
    assert shape(Spec("text", (7,), 50, "token")) == [(3, 7), torch.int64, (3, 7), torch.int64]


@pytest.mark.parametrize(
    "name, precision, tflops",
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156.0),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "fp16", 756.5),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "fp32", 67.0),
        ("NVIDIA B200", "bf16", 2250.0),
        ("NVIDIA GB200", "bf16", 2500.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA A10G", "bf16", 70.0),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
    ],
)
def test_the_peak_is_found_by_the_name_that_cuda_reports(name: str, precision: str, tflops: float) -> None:
    assert peak_of(name, precision) == tflops * 1e12


def test_an_unknown_device_has_no_peak() -> None:
    for name in ("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA A1000", "Some GPU"):
        assert peak_of(name, "bf16") is None
    assert peak_flops(torch.device("cpu"), "bf16") is None
