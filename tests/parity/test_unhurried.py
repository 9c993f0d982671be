"""Torch's optimizers work without its compiler, and with it once it is there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.unhurried import spare_the_compiler

ROOT = Path(__file__).parents[2]

STEPS = """
import sys, torch
from core.unhurried import spare_the_compiler
{first}
for make in (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=0.1, fused=True)):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    made = make(model.parameters())
    for _ in range(3):
        made.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        made.step()
    made.load_state_dict(made.state_dict())
    print("torch._dynamo" in sys.modules, model.weight.tolist())
"""


def steps(first: str, program: str = STEPS) -> list[list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", program.format(first=first)], cwd=ROOT, capture_output=True, check=True
    )
    return [line.split(maxsplit=1) for line in done.stdout.decode().splitlines()]


def test_optimizers_make_the_same_steps_without_the_compiler() -> None:
    spared, plain = steps("spare_the_compiler()"), steps("import torch._dynamo")
    assert [line[0] for line in spared] == ["False", "False"]
    assert [line[1] for line in spared] == [line[1] for line in plain]


COUNT = """
import sys
{first}
from core.data.spec import Spec
from core.estimate import step_flops
from core.recipe import Recipe
from core.config import parse
for model in ({{"kind": "mlp", "hidden": [8], "dropout": 0.1}}, {{"kind": "cnn", "channels": [4, 4]}}):
    recipe = parse(Recipe, {{"name": "x", "data": {{"kind": "image"}}, "model": model}})
    print("torch._dynamo" in sys.modules, step_flops(recipe, Spec("image", (1, 8, 8), 10, "class")))
"""


def test_flops_are_counted_without_the_compiler() -> None:
    spared, plain = steps("", COUNT), steps("import torch._dynamo", COUNT)
    assert [line[0] for line in spared] == ["False", "False"]
    assert [line[1] for line in spared] == [line[1] for line in plain]


def test_no_gradient_flows_through_a_step() -> None:
    spare_the_compiler()
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    (weight * 2).sum().backward()
    with torch.enable_grad():
        optimizer.step()
        assert torch.is_grad_enabled()
    assert weight.tolist() == [0.0, 0.0]
    assert weight.requires_grad and weight.grad_fn is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of what it traces
def test_a_step_can_be_compiled_afterwards() -> None:
    spare_the_compiler()
    import torch._dynamo

    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5)

    @torch.compile(backend="eager")
    def step() -> None:
        optimizer.zero_grad()
        (weight * 2).sum().backward()
        optimizer.step()

    step()
    assert weight.tolist() == [0.0, 0.0]
