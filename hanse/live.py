"""The live table of a run on a terminal: redrawn in place at each report, never scrolling; events go by above it."""

import atexit
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rich import box
from rich.console import Console as Terminal
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from core.printable import printable
from hanse.console import (
    LOUD,
    Console,
    counter,
    end_lines,
    error_line,
    event_lines,
    field_lines,
    printable_lines,
    readings,
)
from hanse.format import HEADLINES, columns, duration, labeled, number, size, sparkline

REDRAWS_PER_S = 8
BAR_WIDTH, SPARK_WIDTH = 26, 48  # with the spaces between, 78 columns
HISTORY = 512  # losses kept for the curve; past that, neighbors are merged
# Shown small, under the table
ASIDE = ("lr", "grad_norm", "mfu", "bytes_up", "bytes_down", "worst_accuracy", "worst_r2", "worst_loss")


class LiveConsole(Console):
    """One table with one row: where the run stands. It stays on the screen, finished, when the command ends."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        self._terminal = terminal or Terminal(highlight=False)
        self._live: Live | None = None
        self._last_redraw = 0.0
        self._train: dict[str, Any] = {}
        self._held_out: dict[str, Any] = {}
        self._by_split: dict[str, dict[str, Any]] = {}  # the newest of each that is held out
        self._best = ""
        self._losses: list[float] = []
        atexit.register(self.close)  # the cursor comes back even if nobody left the `with` block

    def header(self, title: str, fields: Mapping[str, object]) -> None:
        self._terminal.print(Text(printable_lines(title), style="bold"))
        for line in field_lines(fields):
            self._terminal.print(Text(line, style="dim"), overflow="ellipsis", no_wrap=True)

    def progress(self, record: Mapping[str, Any]) -> None:
        self._take(record)
        if self._live is None:
            self._live = Live(console=self._terminal, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        now = time.monotonic()
        if now - self._last_redraw >= 1 / REDRAWS_PER_S:
            self._last_redraw = now
            self._live.update(self._picture(), refresh=True)

    def event(self, name: str, /, **fields: object) -> None:
        style = "yellow" if name in LOUD else "dim"
        for line in event_lines(name, fields):
            self._terminal.print(Text(printable_lines(line), style=style))

    def say(self, *lines: str, style: str = "") -> None:
        for line in lines:
            self._terminal.print(Text(printable_lines(line), style=style), soft_wrap=True)

    def rows(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        for i, line in enumerate(columns(rows)):
            self.say(line, style="" if i else "dim")

    def end(
        self,
        run: str | PurePath | None,
        summary: Mapping[str, Any],
        next_commands: Sequence[str] = (),
        file: PurePath | None = None,
    ) -> None:
        self.close()
        for line in end_lines(run, summary, next_commands, file):
            text = Text(printable_lines(line))
            text.stylize("bold" if line.startswith("result") else "cyan" if line.startswith("next") else "", 0, 8)
            self._terminal.print(text, soft_wrap=True)  # a path that is copied must be whole

    def error(self, message: str, exit_code: int = 1) -> None:
        self.close()
        Terminal(stderr=True, highlight=False).print(Text(error_line(message), style="red"), soft_wrap=True)

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.update(self._picture())
            live.stop()
            self._terminal.print()
            sys.stdout.flush()
        atexit.unregister(self.close)

    def _take(self, record: Mapping[str, Any]) -> None:
        if record.get("split", "train") == "train":
            self._train = {**self._train, **record}
            if isinstance(record.get("loss"), int | float):
                self._losses.append(record["loss"])
            if len(self._losses) > HISTORY:
                pairs = zip(self._losses[::2], self._losses[1::2], strict=False)
                self._losses = [(a + b) / 2 for a, b in pairs]
        else:
            self._held_out = self._by_split[str(record["split"])] = dict(record)
            name, done, _ = counter(record)
            self._best = f"best at {name} {number(done)}" if record.get("best") else self._best

    def _picture(self) -> Group:
        name, done, total = counter(self._train or self._held_out)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="dim", expand=True)
        place = f"{number(done)}/{number(total)}" if total else number(done)
        cells = {name or "step": place, **(self._round_cells() if name == "round" else self._cells())}
        for title in cells:
            table.add_column(Text(printable(title)), justify="right", no_wrap=True)
        table.add_row(*map(Text, cells.values()))  # as text: rich would read [bold] as markup
        known = {**self._by_split.get("clients", {}), **self._train}
        aside = [self._best, *(labeled(key, known[key]) for key in ASIDE if known.get(key) is not None)]
        under = Text(" " + "   ".join(filter(None, aside)), style="dim", overflow="ellipsis", no_wrap=True)
        return Group("", table, self._curve(done, total), under)

    def _cells(self) -> dict[str, str]:
        """The columns after the counter, by title."""
        cells = {"train loss": _cell(self._train, "loss")}
        held_out = readings(self._held_out)
        if held_out:
            cells[f"{self._held_out.get('split', 'validation')} loss"] = _cell(held_out, "loss")
        metric = next((key for key, value in held_out.items() if key != "loss" and isinstance(value, float)), None)
        if metric:
            cells[metric.replace("_", " ")] = number(held_out[metric])
        rate = next((key for key in ("tokens_per_s", "examples_per_s") if key in self._train), None)
        if rate:
            cells[f"{rate.removesuffix('_per_s')}/s"] = number(round(self._train[rate]))
        if self._train.get("memory_bytes"):
            cells["memory"] = size(self._train["memory_bytes"])
        if self._train.get("eta_s") is not None:
            cells["ETA"] = duration(self._train["eta_s"])
        return cells

    def _round_cells(self) -> dict[str, str]:
        """Of a round: who took part, how good the model is for server and clients, and the virtual clock."""
        train, by_split = self._train, self._by_split
        cells = {"loss": _cell(train, "loss")}
        counts = {"clients": "replies", "failed": "failed"}
        cells |= {title: number(train[name]) for name, title in counts.items() if name in train}
        metric = next((key for key in HEADLINES if any(key in record for record in by_split.values())), "loss")
        titles = {
            "validation": metric if metric != "loss" else "held out",
            "clients": "clients",
            "personal": "personal",
        }
        cells |= {title: _cell(by_split[split], metric) for split, title in titles.items() if split in by_split}
        if "simulated_s" in train:
            cells["clock"] = duration(train["simulated_s"])
        return cells

    def _curve(self, done: int, total: int | None) -> Table:
        """How far the run is, and the curve of its loss."""
        line = Table.grid(padding=(0, 1))
        parts: list[ProgressBar | Text] = [Text()]
        if total:
            bar = ProgressBar(
                total=total, completed=done, width=BAR_WIDTH, complete_style="cyan", finished_style="cyan"
            )
            parts.append(bar)
        if self._terminal.encoding.startswith("utf"):
            parts.append(Text(sparkline(self._losses, SPARK_WIDTH), style="cyan", no_wrap=True))
        line.add_row(*parts)
        return line


def _cell(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    return number(value) if isinstance(value, int | float) else "-"
