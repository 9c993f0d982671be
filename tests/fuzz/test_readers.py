"""Data files of strangers, and damaged ones of our own: they are read, or end as one line, and take no memory."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.fuzz.files import READERS
from tests.fuzz.hostile import SWEEP
from tests.fuzz.strangers import FILES

SEEDS = 10  # of each reader
MOST_MB = 256  # above the idle process

ODD_BUT_GOOD = {
    "image large integers: x.npz",
    "image folders not utf-8: x/a",
    "table years: x.csv",
    "table days past all calendars: x.csv",
    *(f"table a column of {kind}: x.parquet" for kind in ("a date", "a time", "halves", "unsigned", "spans")),
}

Outcomes = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """By case, how its reading ended: all of them in one process, whose memory is watched."""
    command = [sys.executable, "-m", "tests.fuzz.reading", str(tmp_path_factory.mktemp("files")), str(SEEDS * SWEEP)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=200 * SWEEP)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"never ends: {(error.stdout or b'').splitlines()[-1:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and not done.stderr, f"{lines[-1:]}: {done.stderr[-2000:]}"
    return {line["case"]: line for line in lines if "case" in line}


def refuse_bad_ends(outcome: dict[str, Any]) -> None:
    assert not outcome["traceback"], f"{outcome['case']}: {outcome['traceback']}"
    assert all(code in (2, 3, 4) for code in outcome["codes"]), outcome
    assert all(said and "\n" not in said for said in outcome["said"]), outcome


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read_and_damaged_ones_are_read_or_refused_in_one_line(name: str, outcomes: Outcomes) -> None:
    assert outcomes[f"{name} whole"]["read"], outcomes[f"{name} whole"]
    refused = 0
    for seed in range(SEEDS * SWEEP):
        refuse_bad_ends(outcomes[f"{name} {seed}"])
        refused += bool(outcomes[f"{name} {seed}"]["codes"])
    assert refused


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_stranger_is_refused_by_its_name_unless_it_is_odd_data(name: str, outcomes: Outcomes) -> None:
    refuse_bad_ends(outcomes[name])
    assert bool(outcomes[name]["read"]) == (name in ODD_BUT_GOOD), outcomes[name]
    assert all("strangers/x" in said for said in outcomes[name]["said"])


def test_no_file_takes_more_memory_than_it_holds(outcomes: Outcomes) -> None:
    assert max(outcomes.values(), key=lambda outcome: int(outcome["above"]))["above"] <= MOST_MB
