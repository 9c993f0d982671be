"""Text from data, configs and run directories of others is shown as text: on a terminal, in a page, in a model card."""

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as Terminal

from core.printable import printable
from core.storage.store import RunDirectory
from hanse.cli import main
from hanse.console import Console, JsonConsole, PlainConsole
from hanse.live import LiveConsole
from hanse.report import write_report

# a title, a cleared screen, an 8-bit control sequence, a reversed order, a lone surrogate, a line of its own
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\ud800\r\nhanse: done <script>alert(1)</script>"
CONTROLS = ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\u202e", "\ud800", "\r")
CSV = "a{0},b,kind\n" + "".join(f"{i % 7},{i % 5},{'xy'[i % 2]}{{0}}\n" for i in range(60))


def everything(console: Console) -> None:
    """Every method, with hostile text in every place."""
    console.header(HOSTILE, {HOSTILE: HOSTILE, "short": HOSTILE[:8]})
    console.progress({"step": 1, "steps": 2, "split": HOSTILE, "loss": 1.0, HOSTILE: 0.5, "word": HOSTILE})
    console.event(HOSTILE, message=HOSTILE, **{HOSTILE: HOSTILE, "one": "\x1b[2J"})
    console.event("warning", message="\x1b[2J\x07", traceback=f"line\n{HOSTILE}")
    console.say(HOSTILE)
    console.rows(HOSTILE, [{HOSTILE: HOSTILE, "n": 1}])
    console.end(HOSTILE, {HOSTILE: HOSTILE, "in": {HOSTILE: 1.0}}, [HOSTILE])
    console.error(HOSTILE)
    console.close()


def test_plain_lines_hold_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    everything(PlainConsole(out=out))
    said = out.getvalue() + capsys.readouterr().err
    assert not [c for c in said if not c.isprintable() and c != "\n"]
    assert "\\x1b]0;owned\\x07" in said and "\\ud800" in said


def test_a_live_table_holds_none_of_the_text_s_own_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    everything(LiveConsole(Terminal(file=out, force_terminal=True, width=300, highlight=False)))
    said = out.getvalue() + capsys.readouterr().err
    assert not [c for c in ("\x1b]0", *CONTROLS[1:-1]) if c in said]
    assert "\\x1b]0;owned\\x07" in said


def test_lines_of_json_are_ascii_and_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    everything(JsonConsole())
    captured = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in captured.out + captured.err)
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert lines[0]["title"] == HOSTILE and len(lines) == 7


def test_a_table_stays_a_table_with_such_names(capsys: pytest.CaptureFixture[str]) -> None:
    PlainConsole().rows("metric", [{"name": "a\x1b[2Jb", "n": 1}, {"name": "plain", "n": 2}])
    first, *rest = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in (first, *rest)}) == 1


@pytest.mark.parametrize("words", [[], ["data.target=nothing"], ["data.columns=[nothing]"], ["model.\x1b[2J=1"]])
def test_a_hostile_header_reaches_the_terminal_as_text(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text(CSV.replace("{0}", "\x1b]0;owned\x07").replace("3,3,", "oops,3,"))
    config = {"data": {"kind": "table", "path": str(tmp_path / "x.csv")}, "model": {"kind": "mlp", "hidden": [8]}}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    assert main(["train", str(tmp_path / "c.yaml"), *words]) in (2, 3)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "\\x1b" in captured.err
    assert not [c for c in captured.out + captured.err if not c.isprintable() and c != "\n"]


def test_class_names_and_the_run_s_name_stay_text_from_training_to_the_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "x <img src=x onerror=alert(1)> `code` [link](http://x) \x1b[2J"
    (tmp_path / "x.csv").write_text(CSV.replace("{0}", "\x1b]0;owned\x07<script>"))
    config: Mapping[str, Any] = {
        "name": name,
        "data": {"kind": "table", "path": str(tmp_path / "x.csv")},
        "model": {"kind": "mlp", "hidden": [8]},
        "train": {"steps": 2},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "c.yaml"), f"run_dir={run}"]) == 0
    assert main(["evaluate", str(run), f"out={tmp_path / 'page.html'}"]) == 0
    assert main(["predict", str(run), f"data.path={tmp_path / 'x.csv'}"]) == 0
    assert main(["runs", "show", str(run)]) == 0
    captured = capsys.readouterr()
    assert not [c for c in captured.out + captured.err if not c.isprintable() and c != "\n"]
    card = (run / "model" / "README.md").read_text()
    title = next(line for line in card.splitlines() if line.startswith("# "))
    assert title == r"# x \<img src=x onerror=alert(1)\> \`code\` \[link\](http://x) \\x1b\[2J"
    for page in (run / "report.html", tmp_path / "page.html"):
        text = page.read_text()
        assert not [c for c in text if not c.isprintable() and c not in "\n\t"]
        assert "<script" not in text and "<img" not in text


@pytest.mark.parametrize("verb", ["train", "federate"])
def test_no_text_of_a_run_directory_becomes_part_of_the_page(verb: str, tmp_path: Path) -> None:
    tag = "<img src=x>"
    with RunDirectory.create(tmp_path / "run", verb=verb, seed=tag, host=tag, versions={tag: tag}) as directory:
        directory.config(f"name: '{tag}'\n")
        for event in ("federation", "client_failed", "client_lost", "quarantined", "worker_failed", "note", tag):
            fields = {"client": tag, "round": tag, "reason": tag, "message": tag, "traceback": tag, "clients": [tag]}
            directory.event(event, **fields)
            directory.event(event, **{**fields, "round": 1, "client": 3})
        for split in ("train", "validation", "clients", "personal", tag):
            counts = {"round": 1, "step": 1, "loss": 0.5, "cohort": [tag, 1], "worst_client": tag}
            directory.metric(split=split, **counts, spread={tag: {"mean": 1.0, "worst_client": tag}, "loss": tag})
            directory.metric(split=split, **{**counts, "round": tag}, member=tag)
        details = {"classes": [tag, tag], "confusion": [[1, 2], [3, 4]]}
        directory.summary({
            "ended": tag, "split": tag, "metrics": {tag: 1.0, "accuracy": 0.5}, "details": details, "steps": tag,
            "samples": [{"prompt": tag, "text": tag}], "parameters": tag, "weights_sha256": tag,
            "members": [{"member": tag, "metrics": {tag: 1.0}, "seed": tag, "ended": tag, "error": tag}],
        })  # fmt: skip
        directory.finish("failed", tag)
    assert tag not in write_report(tmp_path / "run").read_text()


def test_a_model_s_text_is_escaped_on_a_terminal_and_raw_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hanse.commands import generate

    monkeypatch.setattr(generate, "load_models", lambda reference: ())
    monkeypatch.setattr(generate, "write", lambda models, writing: iter(["two\n\t", "\x1b[2J"]))
    assert generate.run("any", ["prompt=one \x1b"], PlainConsole()) == 0
    assert capsys.readouterr().out == "one \x1btwo\n\t\x1b[2J\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert generate.run("any", ["prompt=one \x1b"], PlainConsole()) == 0
    assert capsys.readouterr().out == "one \\x1btwo\n\t\\x1b[2J\n"


def test_an_error_stays_a_line_that_a_person_reads(capsys: pytest.CaptureFixture[str]) -> None:
    PlainConsole().error("key " * 100_000)
    assert len(capsys.readouterr().err) < 2100


def test_text_that_is_printable_stays_as_it_is() -> None:
    assert printable("naïve 漢字 100 % ok") == "naïve 漢字 100 % ok"
    assert printable(printable(HOSTILE)) == printable(HOSTILE)
