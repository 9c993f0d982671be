"""Several models together against the same sums written out, and that no model judges rows it was trained on."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.config import apply, override, parse_run
from core.data import load
from core.ensemble.judge import judge
from core.ensemble.panel import panel_on, panels_of
from core.ensemble.repeat import Repeat, members
from core.ensemble.voices import MonteCarlo
from core.errors import DataError
from core.execute import Summary, execute
from core.recipe import TrainRun
from core.runtime import LOCAL
from core.storage import artifact
from core.storage.artifact import Model
from core.storage.store import RunDirectory

WINE: dict[str, Any] = {
    "data": {"kind": "table", "path": "bundled:wine"},
    "model": {"kind": "mlp", "hidden": [8], "dropout": 0.2},
    "optimizer": {"kind": "adamw", "lr": 0.01},
    "train": {"steps": 20},
}
DIABETES = {
    **WINE,
    "data": {"kind": "table", "path": "bundled:diabetes"},
    "objective": {"kind": "regression"},
}
TEXT: dict[str, Any] = {
    "data": {"kind": "text", "context": 16, "limit_bytes": 6000},
    "model": {"kind": "recurrent", "hidden": 8},
    "train": {"steps": 2, "batch_size": 4},
}
CONFIGS = {"wine": WINE, "diabetes": DIABETES, "text": TEXT}
Build = Callable[..., tuple[tuple[Model, ...], list[Summary]]]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The models of a repeated recipe, each trained as an ordinary run, and the summaries of these runs."""
    made: dict[str, tuple[tuple[Model, ...], list[Summary]]] = {}

    def one(config: str, changes: dict[str, Any] | None = None, **repeat: int) -> tuple[Any, Any]:
        key = repr((config, changes, repeat))
        if key not in made:
            run, folder = parse_run(TrainRun, apply(CONFIGS[config], changes or {})), tmp_path_factory.mktemp("members")
            summaries = []
            for member in members(run.recipe, Repeat(**repeat)):
                recipe = override(run.recipe, member.overrides)
                with RunDirectory.create(folder / "run") as directory:
                    summaries.append(execute(dataclasses.replace(run, recipe=recipe), directory, LOCAL))
                    directory.model.rename(folder / member.name)
                (folder / "run").rename(folder / f"run-{member.name}")
            artifact.save_ensemble(folder, [member.name for member in members(run.recipe, Repeat(**repeat))])
            made[key] = artifact.load_all(folder), summaries
        return made[key]

    return one


def own_test(model: Model) -> tuple[Tensor, Tensor]:
    """Outputs [N, ...] and targets [N, ...] of the model's own test split."""
    recipe = model.recipe
    data = load(recipe.data, recipe.goal.target, recipe.seed)
    batch = next(data.shard().held_out("test", 10_000))
    with torch.no_grad():
        return model.task.network(batch["inputs"]), batch["targets"]


# --- the rows that nobody saw --------------------------------------------------------------------------------------


def test_seeds_are_averaged_on_their_one_test_split(build: Build) -> None:
    models, _ = build("wine", seeds=3)
    judged = judge(panels_of(models))
    said = [own_test(model) for model in models]
    mean, targets = torch.stack([logits.softmax(-1) for logits, _ in said]).mean(0), said[0][1]
    assert judged.examples == len(targets) and judged.voices == 3
    assert judged.metrics["accuracy"] == pytest.approx((mean.argmax(1) == targets).double().mean().item())
    nll = -mean[torch.arange(len(targets)), targets].log().mean().item()
    assert judged.metrics["loss"] == pytest.approx(nll, rel=1e-5)
    assert judged.uncertainty["negative_log_likelihood"] == pytest.approx(nll, rel=1e-5)
    assert judged.uncertainty["mutual_information"] > 1e-5


@pytest.mark.parametrize("config, repeat", [("wine", {"seeds": 3}), ("diabetes", {"folds": 2, "seeds": 2})])
def test_each_member_alone_is_scored_as_its_own_run_was(config: str, repeat: dict[str, int], build: Build) -> None:
    models, summaries = build(config, **repeat)
    judged = judge(panels_of(models))
    assert list(judged.members) == [model.directory.name for model in models]
    for alone, summary in zip(judged.members.values(), summaries, strict=True):
        assert alone == pytest.approx(summary["metrics"], rel=1e-6)


def test_of_folds_every_row_is_judged_once_by_the_models_that_never_saw_it(build: Build) -> None:
    models, _ = build("wine", folds=3, seeds=2)
    panels = panels_of(models)
    judged = judge(panels)
    assert [len(panel.models) for panel in panels] == [2, 2, 2] and judged.voices == 2
    right, rows = 0.0, []
    for first, second in (models[0:2], models[2:4], models[4:6]):
        (a, targets), (b, _) = own_test(first), own_test(second)
        right += ((a.softmax(-1) + b.softmax(-1)).argmax(1) == targets).sum().item()
        data = load(first.recipe.data, "class", first.recipe.seed)
        assert data.rows is not None
        rows += data.rows["test"].tolist()
        assert not set(data.rows["test"].tolist()) & set(data.rows["train"].tolist())
    assert sorted(rows) == list(range(178)) and judged.examples == 178
    assert judged.metrics["accuracy"] == pytest.approx(right / 178)
    assert sum(map(sum, judged.details["confusion"])) == 178


def test_models_whose_seeds_held_out_other_rows_judge_their_own(build: Build) -> None:
    models, _ = build("wine", seeds=3)
    loose = [dataclasses.replace(m, recipe=override(m.recipe, {"data.split.seed": None})) for m in models[:2]]
    panels = panels_of(loose)
    assert [panel.models for panel in panels] == [(loose[0],), (loose[1],)]
    first, second = (panel.data[0].rows for panel in panels)
    assert first is not None and second is not None and first["test"].tolist() != second["test"].tolist()


def test_resamples_share_the_test_split_and_keep_their_own_preparation(build: Build) -> None:
    models, _ = build("wine", bootstraps=2)
    assert models[0].preprocess.fitted != models[1].preprocess.fitted
    (panel,) = panels_of(models)
    ((_, batches),) = panel.batches(torch.device("cpu"))
    assert torch.equal(batches[0]["targets"], batches[1]["targets"])
    assert not torch.equal(batches[0]["inputs"], batches[1]["inputs"])


def test_real_values_are_averaged_in_the_units_of_the_target(build: Build) -> None:
    models, _ = build("diabetes", folds=2, seeds=2)
    judged = judge(panels_of(models))
    assert models[0].preprocess.fitted != models[2].preprocess.fitted  # each fold has a mean and scale of its own
    squares, truths, variances = [], [], []
    for pair in (models[0:2], models[2:4]):
        values = [model.preprocess.to_units(own_test(model)[0]).double().numpy() for model in pair]
        truth = pair[0].preprocess.to_units(own_test(pair[0])[1]).double().numpy()
        squares += list((np.mean(values, axis=0) - truth) ** 2)
        truths += list(truth)
        variances += list(np.var(values, axis=0))
    assert judged.metrics["rmse"] == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)
    assert judged.metrics["r2"] == pytest.approx(1 - np.mean(squares) / np.var(truths), rel=1e-4)
    assert judged.uncertainty == {"std": pytest.approx(np.sqrt(np.mean(variances)), rel=1e-4)}


def test_texts_are_judged_too(build: Build) -> None:
    models, summaries = build("text", seeds=2)
    judged = judge(panels_of(models))
    worst = max(summary["metrics"]["loss"] for summary in summaries)
    assert judged.metrics["loss"] < worst  # the log of a mean is above the mean of logs (Jensen)
    assert judged.uncertainty["negative_log_likelihood"] == pytest.approx(judged.metrics["loss"], rel=1e-6)


# --- other data, dropout -------------------------------------------------------------------------------------------


def test_other_data_is_judged_by_all_members_on_all_rows(build: Build) -> None:
    models, _ = build("diabetes", folds=2, seeds=2)
    panel = panel_on(models, {"data.path": "bundled:diabetes"})
    judged = judge([panel])
    assert judged.examples == 442 and judged.voices == 4
    outputs = []
    for model, data in zip(panel.models, panel.data, strict=True):
        batch = next(data.shard().held_out("test", 10_000))
        with torch.no_grad():
            outputs.append(model.preprocess.to_units(model.task.network(batch["inputs"])).double())
    truth = models[0].preprocess.to_units(next(panel.data[0].shard().held_out("test", 10_000))["targets"]).double()
    rmse = (torch.stack(outputs).mean(0) - truth).square().mean().sqrt().item()
    assert judged.metrics["rmse"] == pytest.approx(rmse, rel=1e-5)


def test_members_that_prepare_alike_share_the_data(build: Build) -> None:
    models, _ = build("wine", seeds=3)
    (panel,) = panels_of(models)
    assert len({id(data) for data in panel.data}) == 1
    assert list(panel.data[0].splits) == ["test"]  # what they trained on is let go


def test_passes_with_dropout_do_not_depend_on_the_batches(build: Build) -> None:
    models, _ = build("wine", seeds=3)
    passes = MonteCarlo(samples=4, seed=2)
    judged = judge(panels_of(models), passes)
    smaller = [dataclasses.replace(m, recipe=override(m.recipe, {"train.evaluate_batch": 5})) for m in models]
    again = judge(panels_of(smaller), passes)
    assert again.metrics == pytest.approx(judged.metrics, rel=1e-5) and judged.voices == 12
    assert again.members["seed-1"]["loss"] == pytest.approx(judged.members["seed-1"]["loss"], rel=1e-5)
    for name in ("mutual_information", "brier_score"):
        assert again.uncertainty[name] == pytest.approx(judged.uncertainty[name], rel=1e-4)
    assert judged.uncertainty["mutual_information"] > judge(panels_of(models)).uncertainty["mutual_information"]


def test_dropout_makes_one_model_many_voices(build: Build) -> None:
    (model, *_), _ = build("wine", seeds=3)
    judged = judge(panels_of([model]), MonteCarlo(samples=5))
    assert judged.members == {} and judged.voices == 5 and judged.uncertainty["mutual_information"] > 0


# --- what does not go ----------------------------------------------------------------------------------------------


def test_models_that_cannot_be_averaged_are_refused_in_one_line(build: Build) -> None:
    (wine, *_), _ = build("wine", seeds=3)
    (diabetes, *_), _ = build("diabetes", folds=2, seeds=2)
    (text, *_), _ = build("text", seeds=2)
    (bpe, *_), _ = build("text", {"data.tokenizer": {"kind": "bpe", "vocab": 300}}, seeds=2)
    with pytest.raises(DataError, match="predicts something else than") as error:
        panels_of([wine, diabetes])
    assert "\n" not in str(error.value) and diabetes.directory.name in str(error.value)
    with pytest.raises(DataError, match="has another tokenizer than"):
        panel_on([text, bpe], {"data.path": "bundled:english"})


def test_a_model_that_held_nothing_out_needs_other_data(build: Build) -> None:
    models, _ = build("wine", {"data.split": {"validation": 0.0, "test": 0.0}}, seeds=2)
    with pytest.raises(DataError, match=r"nothing was held out, .* give data\.path=FILE"):
        panels_of(models)


def test_rows_without_targets_cannot_be_judged(build: Build, tmp_path: Path) -> None:
    models, _ = build("wine", seeds=3)
    names = [feature.name for feature in models[0].preprocess.fitted.features]  # type: ignore[union-attr]
    (tmp_path / "rows.csv").write_text(",".join(names) + "\n" + ",".join(["1"] * len(names)) + "\n")
    with pytest.raises(DataError, match=r"rows\.csv: holds no targets to compare with"):
        judge([panel_on(models, {"data.path": str(tmp_path / "rows.csv")})])
