"""Entropies, calibration and variances against numpy and scikit-learn, and as sums that add."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from core.ensemble.uncertainty import BINS, uncertainty_of
from core.ensemble.voices import Mean, mean_of
from core.metrics import Metrics


def said(*voices: Tensor, target: str = "class") -> Mean:
    mean = mean_of(target)
    for outputs in voices:
        mean.add(outputs)
    return mean


def measured(mean: Mean, targets: Tensor, weights: Tensor | None = None, voices: int = 2, **more: Any) -> Any:
    uncertainty = uncertainty_of(more.pop("target", "class"), voices, **more)
    state = uncertainty.zero()
    uncertainty.add(state, mean, targets, torch.ones(len(targets)) if weights is None else weights)
    return uncertainty.compute(state)


@pytest.fixture
def logits() -> Tensor:
    """[3 voices, 40 rows, 4 classes]."""
    return torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(1)) * 2


@pytest.fixture
def targets() -> Tensor:
    return torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(2))


# --- entropies -----------------------------------------------------------------------------------------------------


def test_voices_that_agree_have_no_mutual_information_and_each_ones_entropy(logits: Tensor, targets: Tensor) -> None:
    found = measured(said(logits[0], logits[0], logits[0]), targets)
    p = logits[0].double().softmax(-1)
    assert found["mutual_information"] == pytest.approx(0, abs=1e-6)
    assert found["expected_entropy"] == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-6)
    assert found["predictive_entropy"] == pytest.approx(found["expected_entropy"], rel=1e-6)


def test_two_sure_voices_that_disagree_are_log_2_apart() -> None:
    sure = torch.tensor([[200.0, 0, 0]]), torch.tensor([[0.0, 200, 0]])
    found = measured(said(*sure), torch.tensor([0]))
    assert found["mutual_information"] == pytest.approx(math.log(2), rel=1e-6)
    assert found["predictive_entropy"] == pytest.approx(math.log(2), rel=1e-6)
    assert found["expected_entropy"] == pytest.approx(0, abs=1e-12)


def test_entropies_are_those_of_numpy(logits: Tensor, targets: Tensor) -> None:
    p = logits.double().softmax(-1).numpy()
    mean = p.mean(0)
    predictive, expected = -(mean * np.log(mean)).sum(-1).mean(), -(p * np.log(p)).sum(-1).mean()
    found = measured(said(*logits), targets)
    assert found["predictive_entropy"] == pytest.approx(predictive, rel=1e-6)
    assert found["expected_entropy"] == pytest.approx(expected, rel=1e-6)
    assert found["mutual_information"] == pytest.approx(predictive - expected, rel=1e-5)


def test_one_voice_has_nothing_to_disagree_with(logits: Tensor, targets: Tensor) -> None:
    found = measured(said(logits[0]), targets, voices=1)
    assert found.keys() == {
        "expected_calibration_error",
        "negative_log_likelihood",
        "brier_score",
        "predictive_entropy",
        "reliability",
    }
    assert measured(said(torch.ones(2, 1), target="real"), torch.ones(2, 1), voices=1, target="real") == {}


# --- calibration ---------------------------------------------------------------------------------------------------


def test_the_likelihood_is_that_of_scikit_learn_and_the_brier_score_that_of_its_definition(
    logits: Tensor, targets: Tensor
) -> None:
    p = logits.double().softmax(-1).mean(0).numpy()
    found = measured(said(*logits), targets)
    assert found["negative_log_likelihood"] == pytest.approx(log_loss(targets, p, labels=range(4)), rel=1e-6)
    one_hot = np.eye(4)[targets.numpy()]
    assert found["brier_score"] == pytest.approx(((p - one_hot) ** 2).sum(1).mean(), rel=1e-6)


def test_the_calibration_error_is_that_of_a_loop_over_bins(logits: Tensor, targets: Tensor) -> None:
    p = logits.double().softmax(-1).mean(0).numpy()
    confidence, right = p.max(1), p.argmax(1) == targets.numpy()
    expected = 0.0
    found = measured(said(*logits), targets)
    assert len(found["reliability"]) == BINS
    for i, bin in enumerate(found["reliability"]):
        inside = (confidence > i / BINS) & (confidence <= (i + 1) / BINS)
        assert bin["count"] == inside.sum()
        if inside.any():
            expected += inside.sum() / 40 * abs(right[inside].mean() - confidence[inside].mean())
            assert bin["accuracy"] == pytest.approx(right[inside].mean())
            assert bin["confidence"] == pytest.approx(confidence[inside].mean(), rel=1e-6)
        else:
            assert bin["accuracy"] is bin["confidence"] is None
    assert found["expected_calibration_error"] == pytest.approx(expected, rel=1e-6)


def test_a_model_that_is_right_as_often_as_it_says_has_no_calibration_error() -> None:
    p = torch.tensor([[0.75, 0.25]]).repeat(4, 1)
    found = measured(said(p.log()), torch.tensor([0, 0, 0, 1]))
    assert found["expected_calibration_error"] == pytest.approx(0, abs=1e-7)


def test_probabilities_of_zero_and_one_are_counted() -> None:
    never = torch.tensor([[0.0, -torch.inf, -torch.inf]] * 2)
    found = measured(said(never, never), torch.tensor([0, 0]))
    numbers = [value for value in found.values() if isinstance(value, float)]
    assert numbers == pytest.approx([0.0] * 6, abs=1e-6)
    assert found["reliability"][-1]["count"] == 2  # a confidence of exactly 1 is in the last bin
    missed = measured(said(never, never), torch.tensor([1, 0]))
    assert missed["negative_log_likelihood"] == math.inf and missed["brier_score"] == pytest.approx(1.0)


# --- what counts ---------------------------------------------------------------------------------------------------


def test_rows_of_weight_zero_do_not_count_whatever_they_hold(logits: Tensor, targets: Tensor) -> None:
    fill = torch.full((3, 2, 4), math.nan)
    padded, weights = torch.cat([logits, fill], dim=1), torch.cat([torch.ones(40), torch.zeros(2)])
    more = torch.cat([targets, torch.tensor([3, 0])])
    assert measured(said(*padded), more, weights) == measured(said(*logits), targets)
    values = torch.randn(2, 5, 1)
    real = {"target": "real"}
    empty = torch.cat([values, torch.full((2, 1, 1), math.nan)], dim=1)
    weights = torch.tensor([1.0] * 5 + [0.0])
    assert measured(said(*empty, **real), torch.zeros(6, 1), weights, **real) == measured(
        said(*values, **real), torch.zeros(5, 1), **real
    )


def test_a_weight_of_two_counts_as_two_rows(logits: Tensor, targets: Tensor) -> None:
    weights = torch.ones(40)
    weights[7] = 2
    twice = torch.cat([torch.arange(40), torch.tensor([7])])
    weighted, doubled = measured(said(*logits), targets, weights), measured(said(*logits[:, twice]), targets[twice])
    assert weighted.pop("reliability")[3] == doubled.pop("reliability")[3]
    assert weighted == pytest.approx(doubled)


def test_of_a_text_only_scored_tokens_count(logits: Tensor, targets: Tensor) -> None:
    text = logits.reshape(3, 8, 5, 4)
    tokens = targets.reshape(8, 5).clone()
    tokens[2, 3:] = -100
    weights = torch.ones(8)
    weights[5] = 0
    kept = (tokens >= 0) & (weights > 0)[:, None]
    found = measured(said(*text, target="token"), tokens, weights, target="token")
    flat = measured(said(*text[:, kept]), tokens[kept])
    assert found.pop("reliability") == flat.pop("reliability")
    assert found == pytest.approx(flat, rel=1e-9)


def test_no_data_gives_no_numbers() -> None:
    for target in ("class", "real"):
        uncertainty = uncertainty_of(target, 2)
        assert uncertainty.compute(uncertainty.zero()) == {}


@pytest.mark.parametrize("target", ["class", "real"])
def test_states_of_parts_add_up_to_the_state_of_the_whole(target: str, logits: Tensor, targets: Tensor) -> None:
    uncertainty = uncertainty_of(target, 3)
    parts = []
    for rows in (slice(0, 11), slice(11, 40)):
        state = uncertainty.zero()
        uncertainty.add(state, said(*logits[:, rows], target=target), targets[rows], torch.ones(len(targets[rows])))
        parts.append(state)
    whole = uncertainty.zero()
    uncertainty.add(whole, said(*logits, target=target), targets, torch.ones(40))
    merged = Metrics.merge(*parts)
    assert all(torch.allclose(merged[name], whole[name], rtol=1e-6) for name in whole)
    assert all(tensor.dtype == torch.float64 for tensor in whole.values())


def test_real_values_have_the_standard_deviation_between_voices_in_their_unit() -> None:
    values = torch.randn(4, 30, 2, generator=torch.Generator().manual_seed(3)) + 1e4
    found = measured(said(*values, target="real"), torch.zeros(30, 2), target="real", unit=7.0)
    expected = 7 * np.sqrt(values.double().numpy().var(axis=0).mean())
    assert found == {"std": pytest.approx(expected, rel=1e-9)}
