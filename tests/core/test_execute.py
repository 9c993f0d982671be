"""A whole run in its directory: what it leaves, and that what it leaves can be used."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.config import apply, parse_run
from core.data import load
from core.errors import DataError
from core.execute import Summary, execute
from core.models.hub import to_hugging_face
from core.recipe import TrainRun
from core.runtime import LOCAL, Runtime
from core.storage import artifact
from core.storage.store import RunDirectory, read_run

DIGITS = {
    "data": {"kind": "image"},
    "model": {"kind": "mlp", "hidden": [16]},
    "optimizer": {"kind": "adamw", "lr": 0.02},
    "train": {"steps": 30, "batch_size": 100, "evaluate_every": 10},
}


def run(folder: Path, **changes: Any) -> Summary:
    parsed = parse_run(TrainRun, apply(DIGITS, {key.replace("__", "."): value for key, value in changes.items()}))
    with RunDirectory.create(folder) as directory:
        return execute(parsed, directory, Runtime(report=directory.record))


def test_a_finished_run_leaves_a_model_that_scores_what_the_summary_says(tmp_path: Path) -> None:
    summary = run(tmp_path / "run")
    model = artifact.load(tmp_path / "run" / "model")
    data = load(model.recipe.data, "class", model.recipe.seed)
    batch = next(data.shard().held_out("test", 10_000))
    with torch.no_grad():
        right = model.task.network(batch["inputs"]).argmax(1) == batch["targets"]
    assert summary["metrics"]["accuracy"] == pytest.approx(right.float().mean().item())
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["weights_sha256"] == summary["weights_sha256"]


def test_a_run_says_what_was_read_and_the_notes_of_its_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.execute.load", lambda *about: replace(load(*about), notes=("two files were left out",)))
    run(tmp_path / "run", train__steps=1)
    said = [(e["event"], e["message"]) for e in read_run(tmp_path / "run").events() if "message" in e]
    sizes = "1,437/180/180 images of 1x8x8, classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)"
    assert said == [("data", sizes), ("note", "two files were left out")]


def test_a_run_directory_works_after_it_was_moved_and_holds_no_path_of_the_machine(tmp_path: Path) -> None:
    run(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    artifact.load(tmp_path / "moved" / "model")
    for file in (tmp_path / "moved").rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            assert str(tmp_path) not in file.read_text(), file


def test_the_last_weights_become_the_model_if_no_evaluation_could_be_judged(tmp_path: Path) -> None:
    data = {"kind": "table", "path": "bundled:diabetes", "split": {"validation": 0.002}}  # one row has no r2
    changes = {"data": data, "objective": {"kind": "regression"}, "train__metric": "r2"}
    last = run(tmp_path / "last", **changes)
    best = run(tmp_path / "best", train__keep="best", **changes)
    assert best["best"]["step"] is None and best["weights_sha256"] == last["weights_sha256"]


def test_the_best_weights_become_the_model_if_the_recipe_says_so(tmp_path: Path) -> None:
    last = run(tmp_path / "last", optimizer__lr=0.2, train__steps=200)  # by then it has overfitted
    best = run(tmp_path / "best", optimizer__lr=0.2, train__steps=200, train__keep="best")
    assert best["best"] == last["best"]
    assert best["best"]["step"] < 200
    assert best["weights_sha256"] != last["weights_sha256"]


def test_a_run_can_start_from_the_weights_of_another(tmp_path: Path) -> None:
    run(tmp_path / "first")
    fresh = run(tmp_path / "fresh", train__steps=1)
    tuned = run(tmp_path / "tuned", train__steps=1, init=str(tmp_path / "first" / "model"))
    assert tuned["metrics"]["loss"] < fresh["metrics"]["loss"] / 2
    events = [json.loads(line) for line in (tmp_path / "tuned" / "events.jsonl").read_text().splitlines()]
    assert next(e for e in events if e["event"] == "initialized")["fresh"] == []


def test_a_resumed_run_needs_neither_the_weights_it_began_with_nor_other_data(tmp_path: Path) -> None:
    def go_on(steps: int, **changes: Any) -> Summary:
        table = {"kind": "table", "path": str(tmp_path / "t.csv")}
        overrides = {"data": table, "train.steps": steps, "init": str(tmp_path / "first"), **changes}
        parsed = parse_run(TrainRun, apply(DIGITS, overrides))
        folder = tmp_path / "run"
        with RunDirectory.open(folder) if folder.exists() else RunDirectory.create(folder) as directory:
            return execute(parsed, directory, Runtime(report=directory.record))

    rows = "".join(f"{i % 7},{i % 5},{'ab'[i % 2]}\n" for i in range(80))
    (tmp_path / "t.csv").write_text("x,y,label\n" + rows)
    run(tmp_path / "other", data={"kind": "table", "path": str(tmp_path / "t.csv")}, train__steps=2)
    (tmp_path / "other" / "model").rename(tmp_path / "first")
    go_on(3)
    shutil.rmtree(tmp_path / "first")
    assert go_on(5)["steps"] == 5
    (tmp_path / "t.csv").write_text("x,y,label\n" + rows.replace("a", "c"))
    with pytest.raises(DataError, match="is not what it was when this run began"):
        go_on(7)


def test_a_run_can_start_from_a_hugging_face_directory(tmp_path: Path) -> None:
    text = {
        "data": {"kind": "text", "context": 16, "limit_bytes": 20000},
        "model": {"kind": "gpt", "layers": 1, "heads": 2, "width": 16},
        "train": {"steps": 1, "batch_size": 4},
    }
    recipe = parse_run(TrainRun, text).recipe
    data = load(recipe.data, "token", 1)
    network = recipe.model.build(data.spec)
    config, weights = to_hugging_face(network, recipe.model, data.spec)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    import safetensors.torch

    safetensors.torch.save_file({n: t.contiguous() for n, t in weights.items()}, tmp_path / "hub" / "model.safetensors")
    parsed = parse_run(TrainRun, {**text, "init": str(tmp_path / "hub"), "optimizer": {"kind": "sgd", "lr": 1e-12}})
    with RunDirectory.create(tmp_path / "run") as directory:
        execute(parsed, directory, LOCAL)
    trained = artifact.load(tmp_path / "run" / "model").task.network.state_dict()
    assert all(torch.allclose(t, trained[name], atol=1e-6) for name, t in network.state_dict().items())


# --- ensembles -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One trained model directory, to be copied."""
    folder = tmp_path_factory.mktemp("member")
    run(folder / "run", train__steps=1)
    return folder / "run" / "model"


@pytest.fixture
def ensemble(member: Path, tmp_path: Path) -> Path:
    for name in ("seed-1", "seed-0"):
        shutil.copytree(member, tmp_path / "model" / name)
    artifact.save_ensemble(tmp_path / "model", ["seed-1", "seed-0"])
    return tmp_path / "model"


def test_an_ensemble_holds_its_members_in_their_order_and_can_be_moved(ensemble: Path, member: Path) -> None:
    moved = ensemble.rename(ensemble.parent / "elsewhere")
    models = artifact.load_all(moved)
    assert [model.directory for model in models] == [moved / "seed-1", moved / "seed-0"]
    assert json.loads((moved / "config.json").read_text())["model_type"] == "hanse-ensemble"
    assert "seed-1" in (moved / "README.md").read_text()
    assert artifact.load_all(moved / "seed-0")[0].directory == moved / "seed-0"
    (single,) = artifact.load_all(member)  # an ordinary model is an ensemble of one
    assert single.directory == member


def test_an_ensemble_whose_writing_was_interrupted_is_none(
    ensemble: Path, member: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ensemble / "config.json").unlink()
    whole = artifact.replace_text

    def interrupted(path: Path, text: str) -> None:
        if path.name == "config.json":
            raise OSError("no space left")
        whole(path, text)

    monkeypatch.setattr(artifact, "replace_text", interrupted)
    with pytest.raises(OSError, match="no space left"):
        artifact.save_ensemble(ensemble, ["seed-0", "seed-1"])
    assert (ensemble / "README.md").exists()  # the config came last
    with pytest.raises(DataError, match="it has no config"):
        artifact.load_all(ensemble)


def test_where_one_model_is_needed_an_ensemble_names_a_member(ensemble: Path) -> None:
    for use in (artifact.load, artifact.read_weights):
        with pytest.raises(DataError, match=r"is an ensemble of 2 models; name one of them, such as .*seed-1") as error:
            use(ensemble)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "preprocess.json", ""])
def test_a_member_that_is_missing_or_damaged_is_named(damage: str, ensemble: Path) -> None:
    if damage:
        (ensemble / "seed-0" / damage).write_bytes(b"{")
    else:
        shutil.rmtree(ensemble / "seed-0")
    with pytest.raises(DataError, match=r"model/seed-0") as error:
        artifact.load_all(ensemble)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("names", [[], None, "seed-0", ["seed-0", 3], ["seed-0", "seed-0"], ["../x"], [".."], [""]])
def test_members_are_different_subdirectories(names: object, ensemble: Path) -> None:
    config = json.loads((ensemble / "config.json").read_text())
    (ensemble / "config.json").write_text(json.dumps({**config, "members": names}))
    with pytest.raises(DataError, match="members must name different subdirectories"):
        artifact.load_all(ensemble)


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage, message",
    [
        ("config.json", "it has no config.json"),
        ("model.safetensors", "no such file"),
        ("preprocess.json", "preprocess.json"),
    ],
)
def test_an_incomplete_model_directory_is_refused(tmp_path: Path, damage: str, message: str) -> None:
    run(tmp_path / "run", train__steps=1)
    (tmp_path / "run" / "model" / damage).unlink()
    with pytest.raises(DataError, match=message):
        artifact.load(tmp_path / "run" / "model")


def test_a_truncated_model_file_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", train__steps=1)
    file = tmp_path / "run" / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError, match="damaged or not a safetensors file"):
        artifact.load(tmp_path / "run" / "model")


def test_regression_is_scored_in_the_units_of_the_target(tmp_path: Path) -> None:
    summary = run(
        tmp_path / "run",
        data={"kind": "table", "path": "bundled:diabetes"},
        objective={"kind": "regression"},
        train__steps=100,
        optimizer__lr=0.01,
    )
    assert 30 < summary["metrics"]["rmse"] < 90  # the target's standard deviation is 77
    assert summary["metrics"]["r2"] > 0
