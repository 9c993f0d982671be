"""The three ways a command speaks: one table on a terminal, lines in a pipe, JSON for programs."""

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hanse.console import Console, JsonConsole, PlainConsole, field_lines
from hanse.format import columns, duration, labeled, number, size, sparkline

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {"step": 10, "steps": 600, "split": "train", "loss": 2.1034, "lr": 0.003, "grad_norm": 1.2}
SPEED = {"examples_per_s": 51000.4, "mfu": 0.031, "memory_bytes": 1.2e9, "eta_s": 41.0}
HELD_OUT = {"split": "validation", "step": 50, "loss": 1.2, "accuracy": 0.74123}


@pytest.mark.parametrize(
    "said, expected",
    [
        (number(1437), "1,437"),
        (number(2.10344), "2.103"),
        (number(0.0941234), "0.09412"),
        (number(0.0), "0.000"),
        (number(0.00001234), "1.234e-05"),
        (number(999.96), "1,000"),
        (number(51234.4), "51,234"),
        (number(123456789.0), "1.235e+08"),
        (number(float("nan")), "nan"),
        (size(512), "512 B"),
        (size(1.2e9), "1.2 GB"),
        (size(999_600_000), "1.0 GB"),
        (size(640_000_000), "640 MB"),
        (size(2e15), "2000.0 TB"),
        (duration(41), "0:41"),
        (duration(59.6), "1:00"),
        (duration(7509), "2:05:09"),
        (duration(266709), "3d 02:05:09"),
        (duration(float("inf")), "-"),
        (labeled("examples_per_s", 51000.4), "51,000 examples/s"),
        (labeled("memory_bytes", 1.2e9), "memory 1.2 GB"),
        (labeled("bytes_up", 73_640), "up 73.6 kB"),
        (labeled("simulated_s", 89.4), "simulated 1:29"),
        (labeled("eta_s", 41.0), "eta 0:41"),
        (labeled("mfu", 0.031), "mfu 3.1%"),
        (labeled("lr", 3e-4), "lr 0.0003"),
        (labeled("balanced_accuracy", 0.5), "balanced accuracy 0.5000"),
        (labeled("best", True), "best True"),
    ],
)
def test_numbers_read_as_a_person_writes_them(said: str, expected: str) -> None:
    assert said == expected


def test_a_sparkline_falls_with_the_loss_and_stays_in_its_width() -> None:
    curve = sparkline([10 / (i + 1) for i in range(100)], 20)
    assert len(curve) == 20 and curve[0] == "█" and curve[-1] == "▁"
    assert list(curve) == sorted(curve, reverse=True)
    assert sparkline([0.5**i for i in range(8)], 8) == "█▇▆▅▄▃▂▁"  # halving is a straight line
    assert sparkline([], 20) == "" and sparkline([float("nan")], 20) == "" and sparkline([1.0, 1.0], 20) == "▁▁"


def test_a_table_has_its_numbers_to_the_right_and_dashes_for_nothing() -> None:
    rows = [{"run": "a", "loss": 0.5, "steps": 1437}, {"run": "longer", "loss": None, "steps": 6}]
    assert columns(rows) == ["run       loss  steps", "a       0.5000  1,437", "longer       -      6"]
    assert columns([]) == []


def test_fields_share_a_line_only_where_both_fit() -> None:
    lines = field_lines({"model": "cnn", "data": "digits", "device": "x" * 60, "seed": 7})
    assert lines == ["  model   cnn                             data    digits", f"  device  {'x' * 60}", "  seed    7"]


def test_a_plain_report_is_one_line_with_columns_that_stay(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole()
    console.progress(TRAIN | SPEED)
    console.progress(TRAIN | SPEED | {"step": 600, "loss": 0.0123456, "grad_norm": 0.98})
    first, second = capsys.readouterr().out.splitlines()
    assert " ".join(first.split()) == (
        "step 10/600 train loss 2.103 lr 0.003 grad norm 1.200 51,000 examples/s mfu 3.1% memory 1.2 GB eta 0:41"
    )
    for column in ("loss", "lr", "grad", "51,000", "mfu", "memory"):
        assert first.index(column) == second.index(column)


def test_a_validation_line_stands_under_the_training_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole()
    console.progress(TRAIN)
    console.progress(HELD_OUT | {"best": True})
    first, second = capsys.readouterr().out.splitlines()
    assert second == "step  50/600  validation  loss 1.200     accuracy 0.7412  best"
    assert first.index("loss") == second.index("loss")


def test_a_round_says_who_replied_what_was_sent_and_when(capsys: pytest.CaptureFixture[str]) -> None:
    sent = {"bytes_up": 73_640, "bytes_down": 103_096}
    record = {"round": 5, "rounds": 20, "split": "train", "loss": 0.8, "clients": 5, "failed": 2, **sent}
    console = PlainConsole()
    console.progress(record | {"simulated_s": 32.0})
    console.progress(record | {"clients": 50, "bytes_up": 736_400, "simulated_s": 65.0})
    first, second = capsys.readouterr().out.splitlines()
    assert " ".join(first.split()) == (
        "round 5/20 train loss 0.8000 clients 5 failed 2 up 73.6 kB down 103 kB simulated 0:32"
    )
    for column in ("failed", "up", "down", "simulated"):
        assert first.index(column) == second.index(column)


def test_an_event_shows_its_message_and_its_traceback_below(capsys: pytest.CaptureFixture[str]) -> None:
    PlainConsole().event("worker_failed", rank=1, message="worker 1 died", traceback="Traceback:\n  boom")
    assert capsys.readouterr().out == "worker failed: worker 1 died  rank 1\n  | Traceback:\n  |   boom\n"


def test_the_last_plain_lines_are_result_run_and_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"test": {"accuracy": 0.98333, "loss": 0.0602}, "steps": 600, "curve": [1, 2]}
    PlainConsole().end(Path("runs/a"), summary, ["hanse evaluate runs/a", "hanse runs list"])
    assert capsys.readouterr().out.splitlines() == [
        "result  test accuracy 0.9833  test loss 0.06020  steps 600",
        "run     runs/a",
        "next    hanse evaluate runs/a",
        "        hanse runs list",
    ]


def test_quiet_keeps_warnings_and_the_last_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole(quiet=True)
    console.header("hanse train", {"seed": 7})
    console.progress(TRAIN)
    console.event("checkpoint", step=10)
    console.event("warning", message="gradients vanish in layer 3")
    console.end("runs/a", {"loss": 1.0})
    assert capsys.readouterr().out == "warning: gradients vanish in layer 3\nresult  loss 1.000\nrun     runs/a\n"


def test_an_error_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    PlainConsole().error("train.steps: must be > 0,\n  got -1", exit_code=2)
    said = capsys.readouterr()
    assert said.err == "hanse: train.steps: must be > 0, got -1\n" and said.out == ""


def test_every_json_line_is_an_object_and_the_last_is_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Console.choose(json=True) as console:
        console.header("hanse train", {"seed": 7})
        console.progress(TRAIN | {"loss": float("nan"), "grad_norm": torch.tensor(1.5)})
        print("a library talks")
        console.event("checkpoint", step=10, path=Path("checkpoints/10"))
        console.say("for people")
        console.rows("row", [{"a": 1}, {"a": 2}])
        console.end(Path("runs/a"), {"loss": float("inf"), "classes": ("a", "b")}, ["hanse runs list"])
    said = capsys.readouterr()
    records = [json.loads(line) for line in said.out.splitlines()]
    assert [record["event"] for record in records] == ["start", "progress", "checkpoint", "row", "row", "end"]
    assert records[1]["loss"] is None and records[1]["grad_norm"] == 1.5
    assert records[-1] == {"event": "end", "run": "runs/a", "summary": {"loss": None, "classes": ["a", "b"]}}
    assert said.err == "a library talks\n"


def test_a_json_error_carries_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    JsonConsole().error("data.path: no such file", exit_code=3)
    said = capsys.readouterr()
    assert json.loads(said.out) == {"event": "error", "message": "data.path: no such file", "exit_code": 3}
    assert said.err == "hanse: data.path: no such file\n"


def test_standard_output_comes_back_after_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), Console.choose(json=True):
        raise RuntimeError
    print("back")
    assert capsys.readouterr().out == "back\n"


def test_a_pipe_gets_plain_lines_and_imports_no_rich() -> None:
    code = """
import sys
from hanse.console import Console
with Console.choose() as console:
    console.progress({"step": 1, "steps": 2, "loss": 1.0})
    console.end("runs/a", {}, [])
print("rich" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["step 1/2              loss 1.000", "result  done", "run     runs/a", "False"]


@pytest.fixture
def terminal() -> Callable[..., tuple[int, str]]:
    """Runs code on a terminal of 80 columns; returns (exit status, everything the terminal received)."""

    def run(code: str, **env: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-c", SETTING + code],
            cwd=ROOT,
            env=os.environ
            | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", "PYTHONIOENCODING": "utf-8"}
            | env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        received = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            received += part
        os.close(ours)
        return child.wait(timeout=30), received.decode()

    return run


SETTING = """
import os, signal
from hanse.console import Console
from hanse.live import LiveConsole
def reports(console, count=30):
    for i in range(count):
        console.progress({"step": i + 1, "steps": 30, "split": "train", "loss": 3.0 / (i + 1), "lr": .003,
                          "examples_per_s": 51e3, "memory_bytes": 1.2e9, "eta_s": 30.0 - i})
    console.progress({"split": "validation", "step": 30, "loss": .5, "accuracy": .97, "best": True})
"""


def last_screen(received: str) -> list[str]:
    """What stands on the terminal at the end, by the few control sequences that a redraw uses."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r\n|\r|\n)", received):
        if part in {"\n", "\r\n"}:
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part and not part.startswith("\x1b") and part != "\r":
            lines[row] += part
    return [line.rstrip() for line in lines]


def test_the_live_table_is_redrawn_in_place_and_fits_80_columns(terminal: Callable[..., tuple[int, str]]) -> None:
    status, received = terminal("""
with Console.choose() as console:
    assert isinstance(console, LiveConsole)
    reports(console)
    console.end("runs/a", {"loss": .5}, ["hanse evaluate runs/a"])
""")
    screen = last_screen(received)
    assert status == 0, received
    assert max(map(len, screen)) <= 80
    assert sum("train loss" in line for line in screen) == 1
    [row] = [line.split() for line in screen if "30/30" in line]
    assert row == ["30/30", "0.1000", "0.5000", "0.9700", "51,000", "1.2", "GB", "0:01"]
    assert any("█" in line and line.endswith("▁") for line in screen)
    assert any("best at step 30" in line for line in screen)
    assert [line for line in screen if line][-3:] == [
        "result  loss 0.5000",
        "run     runs/a",
        "next    hanse evaluate runs/a",
    ]


def test_rounds_have_one_live_line_that_fits_80_columns(terminal: Callable[..., tuple[int, str]]) -> None:
    status, received = terminal("""
with Console.choose() as console:
    for i in range(1, 101):
        place = {"round": i, "rounds": 100}
        console.progress(place | {"split": "train", "loss": 5 / i, "clients": 50, "failed": 2, "bytes_up": 73640,
                                  "bytes_down": 103096, "simulated_s": 61.5 * i})
    console.progress(place | {"split": "validation", "loss": .5, "accuracy": .9})
    console.progress(place | {"split": "clients", "loss": .6, "accuracy": .8, "worst_accuracy": .25})
    console.progress(place | {"split": "personal", "loss": .4, "accuracy": .95, "worst_accuracy": .5})
    console.end("runs/a", {"loss": .5}, [])
""")
    screen = last_screen(received)
    assert status == 0 and max(map(len, screen)) <= 80, received
    [place] = [i for i, line in enumerate(screen) if "100/100" in line]
    assert " ".join(screen[place - 2].split()) == "round loss replies failed accuracy clients personal clock"
    assert screen[place].split() == ["100/100", "0.05000", "50", "2", "0.9000", "0.8000", "0.9500", "1:42:30"]
    assert " ".join(screen[place + 2].split()) == "up 73.6 kB down 103 kB worst accuracy 0.2500"


@pytest.mark.parametrize(
    "code",
    [
        "with Console.choose() as console:\n    reports(console)\n    raise RuntimeError('boom')",
        "with Console.choose() as console:\n    reports(console)\n    os.kill(os.getpid(), signal.SIGINT)",
        "console = Console.choose()\nreports(console)  # and nobody closes it",
    ],
    ids=["error", "ctrl-c", "never closed"],
)
def test_the_cursor_comes_back_however_the_command_ends(code: str, terminal: Callable[..., tuple[int, str]]) -> None:
    _, received = terminal(code)
    assert received.count("\x1b[?25l") == received.count("\x1b[?25h") == 1
    assert received.rindex("\x1b[?25h") > received.rindex("train loss")


def test_no_color_means_no_color(terminal: Callable[..., tuple[int, str]]) -> None:
    code = "with Console.choose() as console:\n    reports(console)\n    console.event('warning', message='hot')"
    colors = [f"\x1b[{n}m" for n in (31, 33, 36)]
    _, plain = terminal(code, NO_COLOR="1")
    _, colored = terminal(code, NO_COLOR="")
    assert not any(color in plain for color in colors)
    assert any(color in colored for color in colors)


def test_a_terminal_that_cannot_redraw_gets_plain_lines(terminal: Callable[..., tuple[int, str]]) -> None:
    _, received = terminal("with Console.choose() as console:\n    reports(console, 2)", TERM="dumb")
    lines = received.split("\r\n")
    assert lines[0].startswith("step  1/30  train       loss 3.000") and lines[2].endswith("best")
    assert "\x1b" not in received


def test_a_quiet_terminal_shows_no_table(terminal: Callable[..., tuple[int, str]]) -> None:
    _, received = terminal("with Console.choose(quiet=True) as console:\n    reports(console)\n    console.error('x')")
    assert received == "hanse: x\r\n"


def test_an_event_stands_above_the_table(terminal: Callable[..., tuple[int, str]]) -> None:
    _, received = terminal("""
with Console.choose() as console:
    reports(console)
    console.event("worker_failed", rank=1, message="worker 1 died", traceback="Traceback\\n  boom")
    console.error("worker 1 died twice", exit_code=5)
""")
    screen = last_screen(received)
    at = {
        word: next(i for i, line in enumerate(screen) if word in line)
        for word in ("died  rank", "boom", "train loss", "twice")
    }
    assert at["died  rank"] < at["boom"] < at["train loss"] < at["twice"]


def test_many_reports_keep_a_short_history_of_losses() -> None:
    from hanse.live import HISTORY, LiveConsole

    console: Any = LiveConsole()
    for i in range(5000):
        console._take({"step": i, "loss": float(5000 - i)})
    assert 0 < len(console._losses) <= HISTORY
    assert console._losses == sorted(console._losses, reverse=True)
