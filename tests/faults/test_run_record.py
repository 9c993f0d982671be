"""A run directory that lost its record, or holds what nobody expects there, is still shown, resumed and used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from core.storage.checkpoint import Checkpointer, Snapshot, load_latest
from core.storage.steps import steps
from hanse.cli import main

CONFIG = {"data": {"kind": "table", "path": "bundled:wine"}, "model": {"kind": "mlp", "hidden": [4]}}
TRAIN = ["train.steps=6", "train.batch_size=32", "train.checkpoint_every=2"]
FEDERATE = ["rounds=3", "clients=2", "checkpoint_every=1", "train.batch_size=32"]

DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "bytes": lambda file: file.write_bytes(b"\xff\x00" * 100),
    "a list": lambda file: file.write_text("[]"),
    "a directory": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(CONFIG))
    return str(path)


def trained(file: str, run: Path, *words: str) -> str:
    assert main(["train", file, *TRAIN, f"run_dir={run}", "--quiet", *words]) == 0
    return str(json.loads((run / "summary.json").read_text()).get("weights_sha256"))


def unfinished(run: Path) -> None:
    """As a kill after the first checkpoints would leave it."""
    newest = steps(run / "checkpoints")[-1]
    shutil.rmtree(newest)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "model")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_run_without_its_record_is_resumed_from_its_checkpoints(
    how: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    before = trained(file, run)
    unfinished(run)
    DAMAGES[how](run / "run.json")
    capsys.readouterr()
    assert main(["runs", "show", str(run)]) == 0
    said = capsys.readouterr().out
    assert "unreadable" in said and f"resume={run}" in said
    assert main(["train", file, *TRAIN, f"run_dir={run}"]) == 2, "without resume nothing is written over"
    assert "resume=true" in capsys.readouterr().err
    assert main(["train", file, *TRAIN, f"resume={run}"]) == 0
    said = capsys.readouterr().out
    assert "run.json" in said and "a new one was written" in said and "started  step 4" in said
    assert json.loads((run / "summary.json").read_text())["weights_sha256"] == before
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["verb"]) == ("done", "train")


def test_a_federation_without_its_record_is_resumed_too(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["federate", "simulate", file, *FEDERATE, f"run_dir={run}"]
    assert main([*words, "--quiet"]) == 0
    before = json.loads((run / "summary.json").read_text())["weights_sha256"]
    unfinished(run)
    (run / "run.json").write_text('{"status": "run')
    assert main([*words, "resume=true"]) == 0
    assert "a new one was written" in capsys.readouterr().out
    assert json.loads((run / "summary.json").read_text())["weights_sha256"] == before
    assert (run / "run.json.damaged").is_file()


def test_a_list_of_runs_names_one_that_lost_its_record(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        trained(file, tmp_path / "runs" / name)
    (tmp_path / "runs" / "a" / "run.json").unlink()
    capsys.readouterr()
    assert main(["runs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("a ") and "unreadable" in line for line in lines)
    assert main(["evaluate", str(tmp_path / "runs" / "a")]) == 0, "its model is whole"


def test_a_run_without_a_model_folder_is_shown(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    trained(file, run)
    shutil.rmtree(run / "model")
    capsys.readouterr()
    assert main(["runs", "show", str(run)]) == 0
    files = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("files"))
    assert "report.html" in files and "model" not in files


def strays(directory: Path) -> None:
    """What an editor, a file manager or a slip of the hand leaves."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("notes.txt", "step-000001", "step-notes", "step-000004.zip", ".DS_Store", "step-99"):
        (directory / name).write_text("x")
    (directory / "step-000005 (copy)").mkdir()
    (directory / "step-000003").mkdir()
    (directory / ".tmp-left").mkdir()


def test_stray_files_among_checkpoints_stop_neither_a_run_nor_its_resuming(file: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    before = trained(file, run)
    unfinished(run)
    strays(run / "checkpoints")
    assert main(["train", file, *TRAIN, f"run_dir={run}", "resume=true", "--quiet"]) == 0
    assert json.loads((run / "summary.json").read_text())["weights_sha256"] == before
    assert (run / "checkpoints" / "notes.txt").read_text() == "x", "what is not ours stays"


def test_stray_files_alone_are_no_checkpoints(file: str, tmp_path: Path) -> None:
    """A run that starts from other weights would otherwise take them for its own, and start without them."""
    first, run = tmp_path / "first", tmp_path / "run"
    trained(file, first)
    before = trained(file, tmp_path / "whole", f"init={first}")
    trained(file, run, f"init={first}")
    for path in steps(run / "checkpoints"):
        shutil.rmtree(path)
    (run / "summary.json").unlink()
    (run / "checkpoints" / "step-000004").write_text("x")
    assert main(["train", file, *TRAIN, f"run_dir={run}", "resume=true", "--quiet"]) == 0
    assert json.loads((run / "summary.json").read_text())["weights_sha256"] == before


def test_stray_files_among_the_checkpoints_of_members_are_passed_over(file: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained(file, run, "repeat.seeds=2", "repeat.backend=loop")
    strays(run / "checkpoints")
    (run / "summary.json").unlink()
    (run / "members" / "seed-1.json").unlink()
    assert main(["train", file, *TRAIN, f"run_dir={run}", "repeat.seeds=2", "repeat.backend=loop", "resume=true"]) == 0


def test_a_directory_of_strays_is_written_to_and_read(tmp_path: Path) -> None:
    strays(tmp_path)
    with Checkpointer(tmp_path, keep_last=1) as checkpoints:
        for step in (6, 7, 8):
            checkpoints.save(Snapshot(step, {}))
    snapshot = load_latest(tmp_path).snapshot
    assert snapshot is not None and snapshot.step == 8
    assert (tmp_path / "step-000001").read_text() == "x"


@pytest.mark.parametrize("words", [["train", *TRAIN, "train.evaluate_every=3"], ["federate", "simulate", *FEDERATE]])
def test_a_run_that_was_killed_after_its_final_scores_records_them_once(
    words: list[str], file: str, tmp_path: Path
) -> None:
    run, place = tmp_path / "run", len(words[:2]) if words[0] == "federate" else 1
    command = [*words[:place], file, *words[place:], f"run_dir={run}", "--quiet"]
    assert main(command) == 0
    before = (run / "metrics.jsonl").read_text().splitlines()
    (run / "summary.json").unlink()
    assert main([*command, "resume=true"]) == 0
    again = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).get("split") for line in again] == [json.loads(line).get("split") for line in before]
    assert sum('"split": "test"' in line for line in again) == 1
