"""Metrics against scikit-learn; the merge of any split of the data against the whole."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.errors import ConfigError
from core.metrics import ClassMetrics, Metrics, RealMetrics, State, exact_auc, higher_is_better, log_odds
from core.task import Batch

FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
Rows = tuple[Tensor, Batch]


def measured(metrics: Metrics, rows: Rows, sizes: list[int] | None = None) -> State:
    """One state per piece of the rows, merged."""
    outputs, batch = rows
    state = metrics.zero()
    for piece, part in pieces(outputs, batch, sizes or [len(outputs)]):
        own = metrics.zero()
        losses, weights = losses_of(piece, part)
        metrics.add(own, piece, part, losses, weights)
        state = Metrics.merge(state, own)
    return state


def pieces(outputs: Tensor, batch: Batch, sizes: list[int]) -> Iterator[Rows]:
    split = {name: tensor.split(sizes) for name, tensor in batch.items()}
    for i, piece in enumerate(outputs.split(sizes)):
        yield piece, {name: tensors[i] for name, tensors in split.items()}


def losses_of(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    targets = batch["targets"]
    if targets.is_floating_point():
        return (outputs - targets).square().mean(1), torch.ones(len(outputs))
    if targets.ndim == 1:
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none"), torch.ones(len(outputs))
    flat = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return flat.view(targets.shape).sum(1), (targets != -100).sum(1).float()


def class_rows(seed: int, rows: int, classes: int, weighted: bool) -> Rows:
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (rows,), generator=g)
    targets[:classes] = torch.arange(classes)  # every class occurs, which scikit-learn's ROC AUC asks for
    outputs = torch.randn(rows, classes, generator=g) * 3
    outputs[torch.arange(rows), targets] += 1.5
    outputs = (outputs * 4).round() / 4  # ties
    weight = torch.rand(rows, generator=g) + 0.1 if weighted else torch.ones(rows)
    return outputs, {"targets": targets, "weight": weight}


cases = given(st.integers(0, 10**6), st.integers(12, 120), st.integers(2, 6), st.booleans())


@FEW
@cases
def test_classification_metrics_are_those_of_scikit_learn(seed: int, rows: int, classes: int, weighted: bool) -> None:
    outputs, batch = class_rows(seed, rows, classes, weighted)
    metrics = Metrics.of("class", classes)
    state = measured(metrics, (outputs, batch))
    values, details = metrics.compute(state), metrics.details(state)
    truth, predicted, w = batch["targets"].numpy(), outputs.argmax(1).numpy(), batch["weight"].double().numpy()
    expected = {
        "loss": np.average(losses_of(outputs, batch)[0].double(), weights=w),
        "accuracy": reference.accuracy_score(truth, predicted, sample_weight=w),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, predicted, sample_weight=w),
    }
    for mean in ("macro", "micro"):
        p, r, f, _ = reference.precision_recall_fscore_support(
            truth, predicted, average=mean, sample_weight=w, zero_division=0
        )
        expected |= {f"precision_{mean}": p, f"recall_{mean}": r, f"f1_{mean}": f}
    auc = expected_auc(outputs, batch)
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert set(values) == {*expected, "roc_auc"}
    assert abs(values["roc_auc"] - auc) <= details["roc_auc_error"] + 1e-12
    assert details["roc_auc_error"] < 0.1
    assert np.allclose(details["confusion"], reference.confusion_matrix(truth, predicted, sample_weight=w), rtol=1e-12)
    by_class = reference.precision_recall_fscore_support(truth, predicted, sample_weight=w, zero_division=0)
    for i in range(classes):
        ours = details["by_class"][str(i)]
        assert [ours[n] for n in ("precision", "recall", "f1", "support")] == pytest.approx([m[i] for m in by_class])


def expected_auc(outputs: Tensor, batch: Batch) -> float:
    """scikit-learn's, on log-odds: probabilities in floating point would merge the largest scores into ties."""
    odds, truth = log_odds(outputs), batch["targets"].numpy()
    w = batch["weight"].double().numpy()
    ranked = range(1, 2) if odds.shape[1] == 2 else range(odds.shape[1])
    return float(np.mean([reference.roc_auc_score(truth == c, odds[:, c].numpy(), sample_weight=w) for c in ranked]))


@FEW
@cases
def test_exact_auc_is_that_of_scikit_learn(seed: int, rows: int, classes: int, weighted: bool) -> None:
    outputs, batch = class_rows(seed, rows, classes, weighted)
    scores, positive, weight = outputs[:, 1], batch["targets"] == 1, batch["weight"]
    expected = reference.roc_auc_score(positive.numpy(), scores.numpy(), sample_weight=weight.double().numpy())
    assert exact_auc(scores, positive, weight) == pytest.approx(expected, rel=1e-12)
    assert exact_auc(scores, torch.ones(rows)) is None


@FEW
@given(
    st.integers(0, 10**6),
    st.sampled_from(["class", "token", "real"]),
    st.lists(st.integers(1, 30), min_size=2, max_size=5),
)
def test_the_merge_of_any_split_equals_the_whole(seed: int, target: str, sizes: list[int]) -> None:
    g, rows = torch.Generator().manual_seed(seed), sum(sizes)
    make: dict[str, Any] = {
        "class": lambda: class_rows(seed, max(rows, 3), 3, True),
        "token": lambda: token_rows(g, rows),
        "real": lambda: real_rows(g, rows, 0.0),
    }
    outputs, batch = make[target]()
    sizes[-1] += len(outputs) - rows
    metrics = Metrics.of(target, outputs.shape[-1], bytes_per_token=3.5)
    whole, merged = measured(metrics, (outputs, batch)), measured(metrics, (outputs, batch), sizes)
    assert metrics.compute(merged) == pytest.approx(metrics.compute(whole), rel=1e-12)
    for name in whole:
        torch.testing.assert_close(merged[name], whole[name], rtol=1e-12, atol=1e-12)


def token_rows(g: torch.Generator, rows: int) -> Rows:
    targets = torch.randint(7, (rows, 5), generator=g)
    targets[torch.rand(rows, 5, generator=g) < 0.3] = -100
    targets[0, 0] = 1
    return torch.randn(rows, 5, 7, generator=g), {"targets": targets, "weight": torch.rand(rows, generator=g) + 0.1}


def real_rows(g: torch.Generator, rows: int, offset: float) -> Rows:
    targets = torch.randn(rows, 2, generator=g, dtype=torch.float64) + offset
    outputs = targets + 0.5 * torch.randn(rows, 2, generator=g, dtype=torch.float64)
    return outputs, {"targets": targets, "weight": torch.rand(rows, generator=g) + 0.1}


@FEW
@given(st.integers(0, 10**6), st.integers(3, 80))
def test_regression_metrics_are_those_of_scikit_learn(seed: int, rows: int) -> None:
    outputs, batch = real_rows(torch.Generator().manual_seed(seed), rows, 3.0)
    metrics = Metrics.of("real", 2)
    truth, predicted, w = batch["targets"].numpy(), outputs.numpy(), batch["weight"].double().numpy()
    expected = {
        "loss": reference.mean_squared_error(truth, predicted, sample_weight=w),
        "r2": reference.r2_score(truth, predicted, sample_weight=w),
        "mae": reference.mean_absolute_error(truth, predicted, sample_weight=w),
        "rmse": reference.root_mean_squared_error(truth, predicted, sample_weight=w),
    }
    assert metrics.compute(measured(metrics, (outputs, batch))) == pytest.approx(expected, rel=1e-9)


def test_errors_of_normalized_targets_are_given_in_the_users_units() -> None:
    outputs, batch = real_rows(torch.Generator().manual_seed(1), 50, 0.0)
    plain, scaled = (RealMetrics(2, unit) for unit in (1.0, 20.0))
    before, after = (metrics.compute(measured(metrics, (outputs, batch))) for metrics in (plain, scaled))
    assert after["mae"] == pytest.approx(20 * before["mae"])
    assert after["rmse"] == pytest.approx(20 * before["rmse"])
    assert after["r2"] == before["r2"]


@pytest.mark.parametrize("offset, digits", [(1e3, 1e-9), (1e6, 1e-3)])
def test_r2_keeps_its_digits_far_from_zero(offset: float, digits: float) -> None:
    outputs, batch = real_rows(torch.Generator().manual_seed(0), 500, offset)
    metrics = RealMetrics(2)
    state = measured(metrics, (outputs, batch), [100] * 5)
    w = batch["weight"].double().numpy()
    expected = reference.r2_score(batch["targets"].numpy(), outputs.numpy(), sample_weight=w)
    assert metrics.compute(state)["r2"] == pytest.approx(expected, abs=digits)


def test_r2_of_a_constant_target_is_left_out() -> None:
    batch = {"targets": torch.full((10, 1), 0.1), "weight": torch.ones(10)}
    metrics = Metrics.of("real", 1)
    assert set(metrics.compute(measured(metrics, (torch.randn(10, 1), batch)))) == {"loss", "mae", "rmse"}


def test_language_metrics_count_scored_tokens_only() -> None:
    outputs, batch = token_rows(torch.Generator().manual_seed(5), 40)
    batch["weight"][:3] = torch.tensor([0.0, 2.0, 0.5])
    sizes = torch.tensor([1.0, 2, 1, 4, 1, 0, 3])
    metrics = Metrics.of("token", 7, bytes_per_token=sizes)
    values = metrics.compute(measured(metrics, (outputs, batch)))
    targets, w = batch["targets"], batch["weight"].double()[:, None].expand(40, 5)
    scored = targets != -100
    nll = -outputs.double().log_softmax(-1)[scored].gather(1, targets[scored][:, None])[:, 0]
    loss = np.average(nll, weights=w[scored])
    num_bytes = (sizes.double()[targets[scored]] * w[scored]).sum().item()
    truth, predicted = targets[scored].numpy(), outputs.argmax(-1)[scored].numpy()
    expected = {
        "loss": loss,
        "perplexity": math.exp(loss),
        "token_accuracy": reference.accuracy_score(truth, predicted, sample_weight=w[scored].numpy()),
        "bits_per_byte": (nll * w[scored]).sum().item() / math.log(2) / num_bytes,
    }
    assert values == pytest.approx(expected, rel=1e-6)  # the losses themselves are float32


def test_perplexity_is_that_of_the_unsmoothed_loss() -> None:
    outputs, batch = token_rows(torch.Generator().manual_seed(6), 10)
    plain, smoothed = Metrics.of("token", 7), Metrics.of("token", 7, smoothed=True)
    state = smoothed.zero()
    losses, weights = losses_of(outputs, batch)
    smoothed.add(state, outputs, batch, losses * 1.25, weights)
    expected = plain.compute(measured(plain, (outputs, batch)))
    values = smoothed.compute(state)
    assert values["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-6)
    assert values["loss"] == pytest.approx(1.25 * expected["loss"], rel=1e-6)


@pytest.mark.parametrize("target", ["class", "token", "real"])
def test_padding_rows_change_nothing_whatever_they_hold(target: str) -> None:
    g = torch.Generator().manual_seed(1)
    rows = {"class": class_rows(1, 20, 3, True), "token": token_rows(g, 20), "real": real_rows(g, 20, 1.0)}[target]
    outputs, batch = rows
    padded = {name: torch.cat([t, t[:4]]) for name, t in batch.items()}
    padded["weight"][20:] = 0
    rubbish = torch.cat([outputs, torch.full_like(outputs[:4], math.nan)])
    metrics = Metrics.of(target, outputs.shape[-1])
    expected = metrics.compute(measured(metrics, (outputs, batch)))
    assert metrics.compute(measured(metrics, (rubbish, padded))) == expected


def test_states_are_sums_in_float64_and_keep_no_rows() -> None:
    metrics = Metrics.of("class", 3)
    small, large = (measured(metrics, class_rows(0, rows, 3, False)) for rows in (10, 100))
    assert {name: t.shape for name, t in small.items()} == {name: t.shape for name, t in large.items()}
    assert all(t.dtype == torch.float64 for t in large.values())


def test_auc_is_exact_to_its_bound_for_confident_models() -> None:
    outputs, batch = class_rows(2, 400, 2, False)
    metrics = Metrics.of("class", 2)
    state = measured(metrics, (outputs * 50, batch))  # probabilities of exactly 0 and 1 in float32
    auc = expected_auc(outputs, batch)
    bound = metrics.details(state)["roc_auc_error"]
    assert abs(metrics.compute(state)["roc_auc"] - auc) <= bound + 1e-12
    assert bound < 0.02


def test_log_odds_rank_as_probabilities_do() -> None:
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    p = logits.softmax(1)
    torch.testing.assert_close(log_odds(logits), torch.log(p / (1 - p)))
    torch.testing.assert_close(log_odds(logits[:, :2]), torch.log((q := logits[:, :2].softmax(1)) / (1 - q)))


def test_macro_means_go_over_the_classes_that_occur_or_are_predicted() -> None:
    truth, predicted = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([0, 2, 1, 1, 0])  # 2 is only predicted, 3 nowhere
    outputs = torch.nn.functional.one_hot(predicted, 4).float()
    metrics = Metrics.of("class", 4)
    values = metrics.compute(measured(metrics, (outputs, {"targets": truth, "weight": torch.ones(5)})))
    expected = reference.f1_score(truth.numpy(), predicted.numpy(), average="macro")
    assert values["f1_macro"] == pytest.approx(expected, rel=1e-12)
    with pytest.warns(UserWarning, match="not in y_true"):
        balanced = reference.balanced_accuracy_score(truth.numpy(), predicted.numpy())
    assert values["balanced_accuracy"] == pytest.approx(balanced, rel=1e-12)


def test_what_is_not_defined_is_left_out() -> None:
    metrics = ClassMetrics(3)
    assert metrics.compute(metrics.zero()) == {}
    batch = {"targets": torch.zeros(4, dtype=torch.int64), "weight": torch.ones(4)}
    values = metrics.compute(measured(metrics, (torch.randn(4, 3), batch)))
    assert "roc_auc" not in values
    assert all(math.isfinite(value) for value in values.values())


def test_the_good_end_of_every_metric_is_known() -> None:
    g = torch.Generator().manual_seed(1)
    for target, rows in (
        ("class", class_rows(1, 20, 3, True)),
        ("token", token_rows(g, 20)),
        ("real", real_rows(g, 20, 0)),
    ):
        metrics = Metrics.of(target, rows[0].shape[-1], bytes_per_token=2.0)
        for name in metrics.compute(measured(metrics, rows)):
            assert higher_is_better(name) == (name not in {"loss", "perplexity", "bits_per_byte", "mae", "rmse"})
    with pytest.raises(ConfigError, match="unknown metric 'acc'"):
        higher_is_better("acc")
    with pytest.raises(ConfigError, match="target 'pixels'"):
        Metrics.of("pixels", 3)
