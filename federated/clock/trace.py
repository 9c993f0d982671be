"""A trace: when real devices were online, and how fast they were, read from a small csv file.

client,start_s,end_s,speed,down_mbps,up_mbps      the last three are optional, each by itself
phone-a,0,3600,120,20,5                           online from second 0 up to, not including, second 3600
phone-a,7200,9000,120,20,5

Times are whole seconds on the virtual clock. The trace repeats after its last end. Clients cycle over its devices: of
a trace with three, client 7 is the second, counted from 1 in the order of their first lines.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError
from core.storage.path import user_path

Whole = NDArray[np.int64]
Real = NDArray[np.float64]
TIMES = ("client", "start_s", "end_s")
SPEEDS = ("speed", "down_mbps", "up_mbps")
LONGEST_S = 10**9  # 30 years: the line of all devices' times then fits 64 bits


@dataclass(frozen=True)
class Trace:
    """Intervals of all devices in one line of time each: device i's begins at i * 2 * period_s.

    starts, ends: [n] rising, over two periods in a row, so that an interval which goes on past the end of the period is
    whole. speeds: by column [devices], for the columns that the file has.
    """

    period_s: int
    devices: int
    starts: Whole
    ends: Whole
    speeds: dict[str, Real]

    def window(self, clients: Whole, second: int) -> tuple[Whole, Whole]:
        """Of each client [n]: for how many seconds it stays online (0 or less: it is not), and in how many it next
        comes online, if it is not."""
        at = clients % self.devices * (2 * self.period_s) + second % self.period_s
        i = np.searchsorted(self.starts, at, side="right")  # the first interval that begins later
        left = np.where(i > 0, self.ends[i - 1] - at, 0)
        return left, self.starts[np.minimum(i, len(self.starts) - 1)] - at


def read_trace(path: str) -> Trace:
    """Reads the file. Raises DataError with the number of the first line that is not as it should be."""
    lines = _lines(user_path(path, "devices.trace"))
    names = lines.pop(0)[1] if lines else []
    if set(names) - {*TIMES, *SPEEDS} or set(TIMES) - set(names) or len(set(names)) < len(names):
        raise DataError(
            f"{path}: line 1 must name the columns {', '.join(TIMES)} and, if there are, {', '.join(SPEEDS)}; "
            f"got {','.join(names) or 'nothing'}"
        )
    if not lines:
        raise DataError(f"{path}: has no line below the names of its columns; add intervals")
    intervals: dict[str, list[tuple[int, int]]] = {}
    speeds: dict[str, list[float]] = {}
    for number, cells in lines:
        if len(cells) != len(names):
            raise DataError(f"{path}: line {number} has {len(cells)} cells, line 1 has {len(names)}; mend that line")
        row, where = dict(zip(names, cells, strict=True)), f"{path}: line {number}"
        intervals.setdefault(row["client"], []).append(_interval(row, where))
        fast = [_speed(name, row[name], where) for name in SPEEDS if name in row]
        if speeds.setdefault(row["client"], fast) != fast:
            raise DataError(f"{where} gives client '{row['client']}' other speeds than an earlier line; mend one")
    columns = np.array(list(speeds.values()), np.float64).T
    given = [name for name in SPEEDS if name in names]
    return _joined(list(intervals.values()), dict(zip(given, columns, strict=True)))


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """(number, cells) of each line that is not empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a csv file: {error}") from None


def _interval(row: dict[str, str], where: str) -> tuple[int, int]:
    try:
        start, end = int(row["start_s"]), int(row["end_s"])
    except ValueError:
        raise DataError(
            f"{where}: start_s and end_s must be whole seconds, got '{row['start_s']}' and '{row['end_s']}'"
        ) from None
    if not 0 <= start < end <= LONGEST_S:
        raise DataError(f"{where}: must have 0 <= start_s < end_s <= {LONGEST_S}, got {start} and {end}")
    return start, end


def _speed(name: str, cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise DataError(f"{where}: {name} must be a number above 0, got '{cell}'")
    return value


def _joined(intervals: list[list[tuple[int, int]]], speeds: dict[str, Real]) -> Trace:
    period = max(end for device in intervals for _, end in device)
    starts, ends = [], []
    for i, device in enumerate(intervals):
        origin = i * 2 * period
        merged: list[list[int]] = []
        for start, end in sorted(device + [(start + period, end + period) for start, end in device]):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        starts += [origin + start for start, _ in merged]
        ends += [origin + end for _, end in merged]
    return Trace(period, len(intervals), np.array(starts, np.int64), np.array(ends, np.int64), speeds)
