"""`out=`: the file that a command writes for its user, and what it never writes over."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.storage.store import RunDirectory, runs_root
from hanse.cli import main

CONFIG = 'data: {kind: table, path: "bundled:wine"}\nmodel: {kind: mlp, hidden: [4]}\ntrain: {steps: 2}\n'
CLIENTS = f"{CONFIG}clients: 3\nrounds: 1\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    root = tmp_path_factory.mktemp("trained")
    (root / "wine.yaml").write_text(CONFIG)
    assert main(["train", str(root / "wine.yaml"), f"run_dir={root / 'run'}", "--quiet"]) == 0
    return root / "run"


def verbs(run: Path, wines: Path, folder: Path) -> dict[str, Sequence[str]]:
    """Every command with `out=`, by the ending of a file that it writes."""
    (folder / "clients.yaml").write_text(CLIENTS)
    return {
        ".csv": ["predict", str(run), f"data.path={wines}"],
        ".html": ["evaluate", str(run)],
        ".svg": ["federate", "partition", str(folder / "clients.yaml")],
        ".jsonl": ["runs", "compare", str(run), str(run)],
    }


def test_what_predict_reads_is_never_written_over(
    run: Path, wines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    was = wines.read_bytes()
    (tmp_path / "link.csv").symlink_to(wines)
    (tmp_path / "again.csv").hardlink_to(wines)
    for out in (wines, tmp_path / "link.csv", tmp_path / "again.csv", f"{tmp_path}/../{tmp_path.name}/wines.csv"):
        for words in ([], ["--force"]):
            assert main(["predict", str(run), f"data.path={wines}", f"out={out}", *words]) == 2
            said = capsys.readouterr().err
            assert said == f"hanse: out: {out} is a file that this command reads; name another file\n"
    assert wines.read_bytes() == was


@pytest.mark.parametrize("ending", [".csv", ".html", ".svg", ".jsonl"])
def test_a_file_that_is_there_is_replaced_only_with_force(
    ending: str, run: Path, wines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / f"out{ending}", verbs(run, wines, tmp_path)[ending]
    out.write_text("mine")
    assert main([*words, f"out={out}"]) == 2
    assert capsys.readouterr().err == f"hanse: out: {out} exists; name another file, or replace it with --force\n"
    assert out.read_text() == "mine"
    assert main([*words, f"out={out}", "--force"]) == 0
    assert out.read_text() != "mine" and f"file    {out}" in capsys.readouterr().out.splitlines()


def test_a_file_that_comes_into_being_meanwhile_is_kept(
    run: Path, wines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"

    def slow(*arguments: object) -> list[dict[str, int]]:
        out.write_text("mine")
        return [{"row": 1}]

    monkeypatch.setattr("hanse.commands.predict.predict", slow)
    assert main(["predict", str(run), f"data.path={wines}", f"out={out}"]) == 2
    assert out.read_text() == "mine"


def test_a_comparison_is_written_as_its_name_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for rate in (0.1, 0.2):
        with RunDirectory.create(runs_root(), "x") as directory:
            directory.config(f"optimizer: {{lr: {rate}}}\n")
            directory.summary({"metrics": {"accuracy": rate}, "split": "test"})
            directory.finish("done")
            names.append(directory.path.name)
    expected = [
        {"what": "optimizer.lr", names[0]: "0.1", names[1]: "0.2"},
        {"what": "accuracy", names[0]: "0.1000", names[1]: "0.2000"},
    ]
    assert main(["runs", "compare", *names, f"out={tmp_path / 'x.csv'}"]) == 0
    with (tmp_path / "x.csv").open() as file:
        assert list(csv.DictReader(file)) == expected
    assert main(["runs", "compare", *names, f"out={tmp_path / 'x.jsonl'}"]) == 0
    assert [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()] == expected
    capsys.readouterr()
    for ending in (".svg", ".pdf", ""):
        assert main(["runs", "compare", *names, f"out={tmp_path / f'x{ending}'}"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("hanse: out: should end in .html, .csv or .jsonl") and said.count("\n") == 1
    assert main(["runs", "compare", *names, "out=nowhere/x.csv"]) == 2
