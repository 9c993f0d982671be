"""`repeat` in a config: many members of one recipe, their spread, and one ensemble of them."""

import json
import math
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.config import override, parse_run, read
from core.ensemble.repeat import members
from core.ensemble.train import Share, summaries, train_share
from core.recipe import TrainRun
from core.storage import artifact
from core.storage.store import RunDirectory
from hanse.cli import main
from hanse.inference import evaluate_each, load_models
from hanse.output import rows_as_text

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
data: {kind: image, path: "bundled:digits"}
model: {kind: mlp, hidden: [16], dropout: 0.1}
optimizer: {kind: adamw, lr: 5e-3}
train: {steps: 40, batch_size: 64, evaluate_every: 20}
"""


def train(config: Path, folder: Path, *words: str) -> int:
    return main(["train", str(config), f"run_dir={folder}", "--json", *words])


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def weights(folder: Path) -> dict[str, str]:
    return {member["member"]: member["weights_sha256"] for member in summary(folder)["members"]}


def test_seeds_are_members_of_one_ensemble_with_mean_deviation_and_interval(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "run", "repeat.seeds=4") == 0
    found = summary(tmp_path / "run")
    accuracies = [member["metrics"]["accuracy"] for member in found["members"]]
    assert len(accuracies) == 4 and len({member["weights_sha256"] for member in found["members"]}) == 4
    spread = found["spread"]["accuracy"]
    assert found["metrics"]["accuracy"] == spread["mean"] == pytest.approx(sum(accuracies) / 4)
    assert spread["low"] < spread["mean"] < spread["high"] and spread["members"] == 4
    assert found["ensemble"]["metrics"]["accuracy"] >= spread["mean"]
    assert 0 <= found["ensemble"]["uncertainty"]["expected_calibration_error"] <= 1
    assert len(artifact.load_all(tmp_path / "run" / "model")) == 4
    curves = {(r["member"], r["step"]) for r in lines(tmp_path / "run", "metrics.jsonl") if r["split"] == "validation"}
    assert len(curves) == 4 * 2
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_first_seed_is_the_run_without_repeat(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "alone") == 0
    assert train(config, tmp_path / "many", "repeat.seeds=2") == 0
    alone = summary(tmp_path / "alone")
    first = summary(tmp_path / "many")["members"][0]
    assert first["metrics"] == pytest.approx(alone["metrics"], abs=1e-3)  # together or alone: but for rounding


def test_folds_judge_every_row_once_by_members_that_never_saw_it(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "run", "repeat={folds: 3, seeds: 2}") == 0
    found = summary(tmp_path / "run")
    assert found["split"] == "out-of-fold" and found["ensemble"]["examples"] == 1797
    assert sum(map(sum, found["details"]["confusion"])) == 1797
    assert {(m["fold"], m["seed"]) for m in found["members"]} == {(f, s) for f in range(3) for s in range(2)}
    means = [sum(m["metrics"]["loss"] for m in found["members"] if m["fold"] == fold) / 2 for fold in range(3)]
    reach = 4.302653 * statistics.stdev(means) * math.sqrt(1 / 3 + 1 / 2)  # Student's t of 2 degrees of freedom
    assert found["spread"]["loss"]["high"] == pytest.approx(sum(means) / 3 + reach)
    rows = (tmp_path / "run" / "predictions.csv").read_text().splitlines()
    header, *body = (row.split(",") for row in rows)
    assert header[:4] == ["row", "fold", "target", "class"]
    assert sorted(int(row[0]) for row in body) == list(range(1, 1798))
    right = sum(row[2] == row[3] for row in body) / 1797
    assert right == pytest.approx(found["ensemble"]["metrics"]["accuracy"])


def test_bootstraps_hold_out_the_same_rows(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "run", "repeat.bootstraps=3") == 0
    found = summary(tmp_path / "run")
    assert found["split"] == "test" and found["ensemble"]["examples"] == 180
    assert [member["bootstrap"] for member in found["members"]] == [0, 1, 2]


def test_a_member_can_be_trained_again_by_its_own_recipe(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "run", "repeat.folds=3") == 0
    run = parse_run(TrainRun, read(tmp_path / "run" / "config.yaml"))
    assert run.repeat is not None
    spec = members(run.recipe, run.repeat)[1]
    words = [f"{key}={value}" for key, value in spec.overrides.items()]
    assert train(config, tmp_path / "alone", *words) == 0
    member = summary(tmp_path / "run")["members"][1]
    assert summary(tmp_path / "alone")["metrics"]["loss"] == pytest.approx(member["metrics"]["loss"], rel=1e-3)
    assert artifact.load(tmp_path / "run" / "model" / spec.name).recipe == override(run.recipe, spec.overrides)


def test_a_run_that_was_stopped_goes_on_with_the_members_that_are_left(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "whole", "repeat.seeds=3") == 0
    assert train(config, tmp_path / "run", "repeat.seeds=3") == 0
    for left in ("summary.json", "members/seed-2.json", "model/config.json"):
        (tmp_path / "run" / left).unlink()
    kept = (tmp_path / "run" / "members" / "seed-0.json").stat().st_mtime_ns
    records = len(lines(tmp_path / "run", "metrics.jsonl"))
    assert train(config, tmp_path / "run", "repeat.seeds=3", "resume=true") == 0
    assert (tmp_path / "run" / "members" / "seed-0.json").stat().st_mtime_ns == kept
    assert len(lines(tmp_path / "run", "metrics.jsonl")) == records, "what is trained again is not said twice"
    event = [e for e in lines(tmp_path / "run", "events.jsonl") if e["event"] == "repeat"][-1]
    assert (event["members"], event["left"]) == (3, 1)
    again, whole = summary(tmp_path / "run"), summary(tmp_path / "whole")
    assert again["metrics"] == pytest.approx(whole["metrics"], abs=1e-3)


def test_a_worker_that_takes_over_a_share_trains_only_what_is_left_of_it(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "run", "repeat.seeds=3") == 0
    run = parse_run(TrainRun, read(tmp_path / "run" / "config.yaml"))
    assert run.repeat is not None
    (tmp_path / "run" / "members" / "seed-1.json").unlink()
    marks = [tmp_path / "run" / "model" / name / "mark" for name in ("seed-0", "seed-1", "seed-2")]
    for mark in marks:
        mark.touch()
    with RunDirectory.open(tmp_path / "run") as directory:
        train_share(Share.of(run, directory, members(run.recipe, run.repeat)))
    assert [mark.exists() for mark in marks] == [True, False, True]


def test_a_run_whose_members_have_all_ended_trains_nothing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, tmp_path / "run", "repeat.seeds=2") == 0
    before = weights(tmp_path / "run")
    capsys.readouterr()
    assert train(config, tmp_path / "run", "repeat.seeds=2", "resume=true") == 0
    assert "all members of this run have come to their end" in capsys.readouterr().out
    assert weights(tmp_path / "run") == before


@pytest.mark.parametrize("word", ["repeat.seeds=3", "train.steps=50", "optimizer.lr=0.1"])
def test_a_repeat_goes_on_with_the_same_recipe_only(
    word: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(CONFIG + "repeat: {seeds: 2}\n")
    assert train(config, tmp_path / "run") == 0
    assert train(config, tmp_path / "run", "resume=true", word) == 2
    assert f"{word.partition('=')[0]}: is " in capsys.readouterr().err


def test_members_that_diverge_are_named_and_the_others_make_the_ensemble(config: Path, tmp_path: Path) -> None:
    config.write_text(CONFIG + "repeat: {seeds: 4}\n")
    run = parse_run(TrainRun, read(config))
    assert run.repeat is not None
    hot = {spec.name: spec for spec in members(run.recipe, run.repeat)}
    assert list(hot) == ["seed-0", "seed-1", "seed-2", "seed-3"]
    assert train(config, tmp_path / "run") == 0
    # as if the second had diverged
    for file in ("summary.json", "model/config.json"):
        (tmp_path / "run" / file).unlink()
    failed = {"member": "seed-1", "seed": 1, "error": "training: the loss or its gradient is not finite at step 3"}
    (tmp_path / "run" / "members" / "seed-1.json").write_text(json.dumps(failed))
    assert train(config, tmp_path / "run", "resume=true") == 0
    found = summary(tmp_path / "run")
    assert found["ensemble"]["members"] == 3 and found["spread"]["accuracy"]["members"] == 3
    assert [m["member"] for m in found["members"] if "error" in m] == ["seed-1"]


def test_a_repeat_of_which_every_member_diverges_fails_and_says_why(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["repeat.seeds=2", "optimizer={kind: sgd, lr: 1e30}"]
    assert train(config, tmp_path / "run", *words) == 5
    said = capsys.readouterr().err
    assert "repeat: all 2 members failed; seed-0: training: the loss or its gradient is not finite" in said
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_damaged_member_summary_is_named(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config, tmp_path / "run", "repeat.seeds=2") == 0
    (tmp_path / "run" / "members" / "seed-1.json").write_text('{"mem')
    (tmp_path / "run" / "summary.json").unlink()
    assert train(config, tmp_path / "run", "repeat.seeds=2", "resume=true") == 3
    assert "seed-1.json: is not whole JSON" in capsys.readouterr().err


def test_a_language_model_is_repeated_and_its_ensemble_writes(config: Path, tmp_path: Path) -> None:
    config.write_text(
        'data: {kind: text, path: "bundled:english", context: 16, limit_bytes: 8000}\n'
        "model: {kind: gpt, width: 16, layers: 1, heads: 2}\ntrain: {steps: 10, batch_size: 8}\nrepeat: {seeds: 2}\n"
    )
    assert train(config, tmp_path / "run") == 0
    found = summary(tmp_path / "run")
    assert found["spread"]["perplexity"]["members"] == 2 and found["samples"][0]["text"]
    assert not (tmp_path / "run" / "predictions.csv").exists()


def test_real_values_are_repeated_over_folds_in_their_units(config: Path, tmp_path: Path) -> None:
    config.write_text(
        'data: {kind: table, path: "bundled:diabetes"}\nobjective: {kind: regression}\nmodel: {kind: mlp, hidden: []}\n'
        "optimizer: {kind: adamw, lr: 1e-2}\ntrain: {steps: 150}\nrepeat: {folds: 4}\n"
    )
    assert train(config, tmp_path / "run") == 0
    found = summary(tmp_path / "run")
    assert 45 < found["ensemble"]["metrics"]["rmse"] < 65  # ridge regression has about 55 on held-out rows
    header, first, *_ = (tmp_path / "run" / "predictions.csv").read_text().splitlines()
    assert header == "row,fold,target,value"
    assert 20 <= float(first.split(",")[2]) <= 350  # the target's units


def test_predictions_have_the_same_columns_where_a_member_of_one_fold_is_missing(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "run", "repeat={folds: 2, seeds: 2}") == 0
    models = load_models(tmp_path / "run")
    _, answers = evaluate_each(models[1:])  # the first member of fold 0 diverged, say
    assert len(rows_as_text(answers, ".csv").splitlines()) == 1798
    by_fold = {answer["fold"]: answer for answer in answers}
    assert by_fold[0]["mutual_information"] == 0 and set(by_fold[0]) == set(by_fold[1])


def test_the_spread_of_real_values_is_in_the_units_of_the_target_in_every_fold(config: Path, tmp_path: Path) -> None:
    config.write_text(
        'data: {kind: table, path: "bundled:diabetes"}\nobjective: {kind: regression}\n'
        "model: {kind: mlp, hidden: [8]}\noptimizer: {kind: adamw, lr: 1e-2}\ntrain: {steps: 20}\n"
        "repeat: {folds: 3, seeds: 2}\n"
    )
    assert train(config, tmp_path / "run") == 0
    models = load_models(tmp_path / "run")
    _, together = evaluate_each(models)
    each = [{a["row"]: a["value"] for a in evaluate_each(models[i::2])[1]} for i in range(2)]
    for answer in together:
        values = [alone[answer["row"]] for alone in each]
        assert answer["value"] == pytest.approx(sum(values) / 2, rel=1e-4)
        assert answer["std"] == pytest.approx(statistics.pstdev(values), rel=1e-3, abs=1e-3)


def test_people_see_one_line_for_all_members_and_the_spread_at_the_end(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), f"run_dir={tmp_path / 'run'}", "repeat.seeds=3"]) == 0
    out = capsys.readouterr().out.splitlines()
    progress = [line for line in out if line.startswith("step") and "train" in line]
    assert len(progress) == 5 and "members 0/3" in progress[1]
    assert sum(line.startswith("member done: seed-") for line in out) == 3
    said = " ".join(" ".join(out).split())
    assert "(std 0.0" in said and "95 %: 0." in said
    assert any("ensemble accuracy" in line for line in out)


def test_a_repeat_is_shown_with_its_mean_and_its_ensemble_and_its_cost_is_known_before(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "repeat.folds=3", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]["members"] == 3
    assert train(config, tmp_path / "run", "repeat.seeds=2") == 0
    capsys.readouterr()
    assert main(["runs", "show", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "mean of members" in out and "ensemble" in out


# --- over a pool, and faults ---------------------------------------------------------------------------------------


@pytest.mark.ray
def test_two_workers_give_the_members_that_one_process_gives(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "here", "repeat.seeds=4") == 0
    assert train(config, tmp_path / "there", "repeat.seeds=4", "workers=2") == 0
    here, there = summary(tmp_path / "here"), summary(tmp_path / "there")
    for ours, theirs in zip(here["members"], there["members"], strict=True):
        assert ours["member"] == theirs["member"]
        assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-3)
    assert there["ensemble"]["metrics"] == pytest.approx(here["ensemble"]["metrics"], abs=1e-3)
    for file in (tmp_path / "there" / "model").rglob("config.json"):
        assert str(tmp_path) not in file.read_text()


def start(config: Path, folder: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "hanse", "train", str(config), f"run_dir={folder}", "--json", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: "subprocess.Popen[str]", word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(f"{word} never came: {process.stderr.read() if process.stderr else ''}")


LONG = ("repeat.seeds=3", "train.steps=100000", "train.evaluate_every=0", "train.log_every=50")


def test_ctrl_c_ends_a_repeat_and_says_how_to_go_on(config: Path, tmp_path: Path) -> None:
    with start(config, tmp_path / "run", *LONG) as process:
        wait_for(process, '"step": 50')
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    last = json.loads(out.splitlines()[-1])
    assert last["event"] == "end" and last["summary"]["ended"] == "stopped"
    assert not list((tmp_path / "run").glob("members/*")), "a member that was stopped has not ended"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"


def test_a_killed_repeat_keeps_the_members_that_had_ended(config: Path, tmp_path: Path) -> None:
    ragged = ("repeat.folds=2", "train.batch_size=64", "model.kind=cnn", "model.norm=batch", "train.steps=60")
    with start(config, tmp_path / "run", *ragged) as process:
        wait_for(process, '"event": "member_done"')
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    with RunDirectory.open(tmp_path / "run") as directory:
        there = summaries(directory)
    assert there
    assert train(config, tmp_path / "run", *ragged, "resume=true") == 0
    found = summary(tmp_path / "run")
    assert len(found["members"]) == 2
    for name, before in there.items():
        assert next(m for m in found["members"] if m["member"] == name) == before
