"""What several voices say together, and that passes with dropout are a function of their address."""

import math

import pytest
import torch
from torch import Tensor, nn

from core.data.spec import Spec
from core.ensemble.voices import MonteCarlo, mean_of, voices
from core.errors import ConfigError
from core.models import CNN, GPT, MLP, Recurrent
from core.models.layers import Dropout

IMAGES = Spec("image", (1, 8, 8), 3, "class")
TEXT = Spec("text", (12,), 7, "token")


def built(config: object, spec: Spec) -> nn.Module:
    """A network with its dropout layers numbered, as a recipe builds it."""
    torch.manual_seed(0)
    network: nn.Module = config.build(spec)  # type: ignore[attr-defined]
    for salt, module in enumerate(m for m in network.modules() if isinstance(m, Dropout)):
        module.salt = salt
    return network.eval()


def heard(network: nn.Module, inputs: Tensor, start: int = 0, number: int = 0, **passes: int) -> Tensor:
    with torch.no_grad():
        return torch.stack(list(voices(network, inputs, start, number, MonteCarlo(**passes))))


# --- the mean ------------------------------------------------------------------------------------------------------


def test_the_mean_of_probabilities_is_normalized_and_that_of_numpy() -> None:
    logits = torch.randn(5, 6, 3)
    mean = mean_of("class")
    for voice in logits:
        mean.add(voice)
    assert torch.allclose(mean.outputs.exp(), logits.softmax(-1).mean(0), atol=1e-6)
    assert torch.allclose(mean.outputs.logsumexp(-1), torch.zeros(6), atol=1e-6)


def test_the_mean_does_not_underflow_where_all_voices_find_something_impossible() -> None:
    logits = torch.tensor([[0.0, -800.0], [0.0, -900.0]])
    mean = mean_of("token")
    for voice in logits:
        mean.add(voice[None])
    assert mean.outputs[0, 1].item() == pytest.approx(-800 - math.log(2))


@pytest.mark.parametrize("target", ["class", "real", "token"])
def test_a_single_voice_is_its_own_mean_bit_for_bit(target: str) -> None:
    outputs, mean = torch.randn(4, 3), mean_of(target)
    mean.add(outputs)
    assert torch.equal(mean.outputs, outputs)


def test_the_voices_that_were_added_stay_as_they_were() -> None:
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    before, mean = first.clone(), mean_of("class")
    mean.add(first)
    mean.add(second)
    assert torch.equal(first, before)


# --- passes with dropout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, spec",
    [
        (MLP(hidden=(16,), dropout=0.3), IMAGES),
        (CNN(channels=(4,), norm="batch", dropout=0.3), IMAGES),
        (Recurrent(hidden=8, layers=2, dropout=0.3), TEXT),
        (GPT(width=16, layers=1, heads=2, dropout=0.3), TEXT),
    ],
)
def test_passes_differ_and_are_the_same_in_any_batch(config: object, spec: Spec) -> None:
    network = built(config, spec)
    inputs = torch.randn(6, *spec.shape) if spec.kind == "image" else torch.randint(0, 7, (6, 12))
    together = heard(network, inputs, samples=3)
    assert not torch.allclose(together[0], together[1]) and not torch.allclose(together[1], together[2])
    apart = torch.cat([heard(network, inputs[:4], samples=3), heard(network, inputs[4:], start=4, samples=3)], dim=1)
    assert torch.allclose(together, apart, atol=1e-6)
    assert torch.allclose(together[:2], heard(network, inputs, samples=2), atol=1e-6)  # more passes change none


def test_other_seeds_and_other_models_have_other_masks() -> None:
    network, inputs = built(MLP(hidden=(16,), dropout=0.3), IMAGES), torch.randn(6, 1, 8, 8)
    first = heard(network, inputs, samples=2)
    assert torch.equal(first, heard(network, inputs, samples=2))
    assert not torch.allclose(first, heard(network, inputs, samples=2, seed=1))
    assert not torch.allclose(first, heard(network, inputs, number=1, samples=2))


def test_dropout_leaves_the_mean_where_it_is_in_a_linear_model() -> None:
    dropout = Dropout(0.5)

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = dropout

        def forward(self, x: Tensor, key: Tensor | None = None) -> Tensor:
            out: Tensor = self.dropout(x, key)
            return out

    inputs = torch.ones(50, 20)
    found = heard(Linear().eval(), inputs, samples=200)
    assert found.mean().item() == pytest.approx(1.0, abs=0.01)  # 200,000 draws of 0 or 2: four standard errors
    assert set(found.unique().tolist()) == {0.0, 2.0}


def test_only_dropout_is_turned_on_and_batch_norm_learns_nothing() -> None:
    network = built(CNN(channels=(4,), norm="batch", dropout=0.3), IMAGES)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    heard(network, torch.randn(6, 1, 8, 8) * 10 + 3, samples=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_passes_of_a_model_without_dropout_are_refused() -> None:
    network = built(MLP(hidden=(16,)), IMAGES)
    with pytest.raises(ConfigError, match="samples: the model has no dropout"):
        heard(network, torch.randn(2, 1, 8, 8), samples=2)


@pytest.mark.parametrize("samples, seed, message", [(1, 0, "samples must be 0"), (-2, 0, "samples"), (0, 3, "seed")])
def test_passes_that_make_no_sense_are_refused(samples: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MonteCarlo(samples, seed)
