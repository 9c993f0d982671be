"""`hanse evaluate`, `predict` and `generate` with an ensemble, and with dropout left on: as with any model."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import hanse
from core.data.sources.bundled import read_table
from core.errors import ConfigError
from core.storage import artifact
from hanse.cli import main
from tests.hanse.test_report import Checked

CONFIGS = {
    "wine": """\
data: {kind: table, path: "bundled:wine", split: {seed: 0}}
model: {kind: mlp, hidden: [16], dropout: 0.3}
train: {steps: 60}
""",
    "diabetes": """\
data: {kind: table, path: "bundled:diabetes", split: {seed: 0, folds: 3}}
model: {kind: mlp, hidden: [8]}
objective: {kind: regression}
train: {steps: 40}
""",
    "english": """\
data: {kind: text, path: "bundled:english", context: 48, limit_bytes: 20000, split: {seed: 0}}
model: {kind: gpt, width: 32, layers: 1, heads: 2}
train: {steps: 10, batch_size: 8}
""",
}
MEMBERS = {
    "wine": {f"seed-{i}": [f"seed={i}"] for i in range(3)},
    "diabetes": {f"fold-{i}": [f"data.split.fold={i}"] for i in range(3)},
    "english": {f"seed-{i}": [f"seed={i}"] for i in range(2)},
}


@pytest.fixture(scope="module")
def ensembles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run directory of each kind whose model is an ensemble."""
    root = tmp_path_factory.mktemp("ensembles")
    for name, text in CONFIGS.items():
        (root / f"{name}.yaml").write_text(text)
        model = root / name / "model"
        model.mkdir(parents=True)
        for member, words in MEMBERS[name].items():
            run = root / f"{name}-{member}"
            assert main(["train", str(root / f"{name}.yaml"), f"run_dir={run}", *words, "--quiet"]) == 0
            (run / "model").rename(model / member)
        artifact.save_ensemble(model, list(MEMBERS[name]))
    return {name: root / name / "model" for name in CONFIGS}


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]
    return found


# --- evaluate ------------------------------------------------------------------------------------------------------


def test_an_ensemble_is_evaluated_beside_its_members(
    ensembles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    together = said(capsys, "evaluate", str(ensembles["wine"]))
    alone = {name: said(capsys, "evaluate", str(ensembles["wine"] / name))["metrics"] for name in MEMBERS["wine"]}
    assert together["split"] == "test" and together["voices"] == 3
    for name, metrics in alone.items():
        assert together["members"][name] == pytest.approx(metrics)
    losses = [metrics["loss"] for metrics in alone.values()]
    assert together["spread"]["loss"]["mean"] == pytest.approx(sum(losses) / 3)
    assert together["metrics"]["loss"] < sum(losses) / 3  # Jensen
    assert together["uncertainty"]["mutual_information"] > 0 and len(together["uncertainty"]["reliability"]) == 15


def test_folds_are_evaluated_out_of_fold(ensembles: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    together = said(capsys, "evaluate", str(ensembles["diabetes"]))
    assert together["split"] == "out-of-fold" and together["examples"] == 442 and together["voices"] == 1
    assert together["uncertainty"] == {}  # one voice for each row: nothing lies between
    naive = 4.302652729911275 * together["spread"]["rmse"]["std"] / 3**0.5  # Student's t at 2 degrees of freedom
    # folds share training rows, so the interval of their mean is wider than of independent members
    assert together["spread"]["rmse"]["high"] - together["spread"]["rmse"]["mean"] > 1.5 * naive


def test_people_see_the_ensemble_its_members_and_how_sure_they_are(
    ensembles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(ensembles["wine"])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["metric", "ensemble", "member", "mean", "member", "std"] for line in lines)
    for words in ("3 members", "calibration error (ECE)", "negative log-likelihood", "mutual information"):
        assert any(words in line for line in lines), words
    assert lines[-1].startswith("next    hanse predict")


def test_the_page_of_an_evaluation_stands_alone_and_shows_the_diagram(
    ensembles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in (
        ("wine", ("test accuracy", "3 members together", "calibration error", "Confusion matrix", "95% interval")),
        ("diabetes", ("out-of-fold R²", "ensemble R²", "root mean squared error")),
        ("english", ("test perplexity", "mutual information")),
    ):
        assert main(["evaluate", str(ensembles[name]), f"out={tmp_path / name}.html"]) == 0
        assert f"file    {tmp_path / name}.html" in capsys.readouterr().out
        text = (tmp_path / f"{name}.html").read_text()
        page = Checked(text)
        assert all(word in page.text for word in words) and "http" not in text
        assert ('aria-label="Reliability: ' in text) == (name != "diabetes")


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out, message in (("page.txt", "should end in .html"), ("no/page.html", "is no directory")):
        assert main(["evaluate", "no-such-model", f"out={tmp_path / out}"]) == 2
        assert message in capsys.readouterr().err


# --- dropout left on -----------------------------------------------------------------------------------------------


def test_passes_with_dropout_make_one_model_many_voices(
    ensembles: dict[str, Path], wines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member = str(ensembles["wine"] / "seed-0")
    first, again, other = (said(capsys, "evaluate", member, "samples=5", f"seed={seed}") for seed in (1, 1, 2))
    assert first == again != other
    assert first["voices"] == 5 and first["uncertainty"]["mutual_information"] > 0 and first["members"] == {}
    plain = said(capsys, "evaluate", member)
    assert plain["voices"] == 1 and "mutual_information" not in plain["uncertainty"]
    assert said(capsys, "evaluate", str(ensembles["wine"]), "samples=2")["voices"] == 6
    (answer, *_) = hanse.predict(member, wines, samples=3)
    assert answer["mutual_information"] > 0


@pytest.mark.parametrize(
    "name, words, message",
    [
        ("wine", ["samples=1"], "samples: must be 0 (dropout off) or at least 2"),
        ("wine", ["samples=many"], "samples:"),
        ("wine", ["seed=3"], "seed: decides dropout masks and there are none"),
        ("diabetes", ["samples=4"], "samples: the model has no dropout to vary"),
    ],
)
def test_passes_that_cannot_be_are_one_line(
    name: str, words: list[str], message: str, ensembles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(ensembles[name]), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# --- predict and generate ------------------------------------------------------------------------------------------


def test_predictions_of_an_ensemble_say_how_sure_they_are(
    ensembles: dict[str, Path], wines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.csv"
    assert main(["predict", str(ensembles["wine"]), f"data.path={wines}", f"out={out}"]) == 0
    with out.open() as answers:
        rows = list(csv.DictReader(answers))
    assert list(rows[0]) == ["row", "class", "probability", "entropy", "mutual_information"] and len(rows) == 178
    assert all(0 <= float(row["mutual_information"]) <= float(row["entropy"]) <= 1.0987 for row in rows)
    found = said(capsys, "evaluate", str(ensembles["wine"]), f"data.path={wines}")
    mean = sum(float(row["entropy"]) for row in rows) / 178
    assert found["uncertainty"]["predictive_entropy"] == pytest.approx(mean, rel=1e-5)


def test_values_of_an_ensemble_are_the_mean_of_the_members_in_the_targets_units(
    ensembles: dict[str, Path], tmp_path: Path
) -> None:
    table, path = read_table("diabetes"), tmp_path / "patients.csv"
    lines = [",".join(table.columns), *[",".join(map(str, row)) for row in table.inputs]]
    path.write_text("\n".join(lines) + "\n")
    together = hanse.predict(ensembles["diabetes"], path)
    alone = [hanse.predict(ensembles["diabetes"] / name, path) for name in MEMBERS["diabetes"]]
    for i, answer in enumerate(together):
        values = [rows[i]["value"] for rows in alone]
        mean = sum(values) / 3
        assert answer["value"] == pytest.approx(mean, rel=1e-5)
        assert answer["std"] == pytest.approx((sum((v - mean) ** 2 for v in values) / 3) ** 0.5, rel=1e-3, abs=1e-4)
    assert "std" not in alone[0][0]


@pytest.mark.parametrize("words", [["temperature=0"], ["beams=2"], ["seed=3"]])
def test_an_ensemble_writes_text_in_every_way(
    words: list[str], ensembles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for _ in range(2):
        assert main(["generate", str(ensembles["english"]), "prompt=The ", "max_new_tokens=8", *words]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("The ")


def test_samples_of_a_run_are_written_by_all_members(ensembles: dict[str, Path]) -> None:
    from hanse.writer import continuations

    samples = continuations(ensembles["english"])
    assert len(samples) == 3 and all(sample["text"] for sample in samples)


def test_each_sample_of_a_run_has_a_random_stream_of_its_own(
    ensembles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hanse import writer

    monkeypatch.setattr(writer, "PROMPTS", ("The ",) * 3)
    first, again = (writer.continuations(ensembles["english"]) for _ in range(2))
    assert first == again and len({sample["text"] for sample in first}) == 3


def test_an_ensemble_that_writes_no_text_says_so(
    ensembles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(ensembles["wine"]), "prompt=x"]) == 2
    assert "writes no text" in capsys.readouterr().err


# --- Python --------------------------------------------------------------------------------------------------------


def test_the_functions_take_what_the_command_takes(ensembles: dict[str, Path]) -> None:
    found = hanse.evaluate(ensembles["wine"])
    assert found.spread["accuracy"].members == 3 and found.uncertainty["brier_score"] > 0
    assert set(found.members) == set(MEMBERS["wine"])
    assert hanse.evaluate(ensembles["wine"], samples=2, seed=1).voices == 6
    with pytest.raises(ConfigError, match="samples: must be 0"):
        hanse.evaluate(ensembles["wine"], samples=1)
    assert hanse.generate(ensembles["english"], "The ", max_new_tokens=4, temperature=0)


def test_a_run_cannot_begin_from_an_ensemble(
    ensembles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wine.yaml").write_text(CONFIGS["wine"])
    words = ["train", str(tmp_path / "wine.yaml"), f"run_dir={tmp_path / 'run'}", f"init={ensembles['wine']}"]
    assert main([*words, "--quiet"]) == 3
    error = capsys.readouterr().err
    assert "is an ensemble of 3 models; name one of them, such as" in error and error.count("\n") == 1
