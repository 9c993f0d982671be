"""The report of a federation, and of several in one picture."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import DataError
from core.storage.store import RunDirectory, read_run
from hanse.report import write_report
from hanse.report.charts import SMALL, line_chart
from hanse.report.cohorts import MAX_CLIENTS, MAX_COLUMNS, absences, cohort_map
from hanse.report.comparison import compare_pages
from hanse.report.federation import SIZES, TIMES, Rounds, drawing_of, unit_of
from tests.hanse.test_report import HOSTILE, Checked, page_of

SVG = '<svg xmlns="http://www.w3.org/2000/svg" fill="currentColor"><desc>labels</desc><circle r="3"/></svg>'


def spread(value: float) -> dict[str, dict[str, float]]:
    """Of a metric over ten clients, around `value`."""
    numbers = {"mean": value, "std": 0.05, "q10": value - 0.1, "q50": value, "q90": value + 0.05, "worst": value - 0.3}
    return {"accuracy": {"clients": 10, **numbers, "worst_client": 7}}


def federation(root: Path, rounds: int = 6, name: str = "1124-0900-digits-7f3a", devices: bool = True) -> RunDirectory:
    """Ten clients, of whom 0, 1 and the round's own number train; the last is quarantined in even rounds."""
    directory = RunDirectory.create(root / name, verb="federate", seed=3)
    directory.config("name: digits\nrounds: 6\n")
    directory.event("federation", clients=10, cohort=3, round=0)
    for round in range(1, rounds + 1):
        own = 2 + round % 8
        if round % 2 == 0:
            directory.event("quarantined", round=round, client=own, reason=f"update has norm {4 + round}.5, above 2.8")
        place = {"round": round, "rounds": 6}
        clock = {"simulated_s": 20.0 * round} if devices else {}
        sent = {"bytes_up": 20_000, "bytes_down": 30_000}
        directory.metric(**place, split="train", loss=2 / round, clients=3, failed=1, **sent, **clock, seconds=0.5)
        cohort = {"client": [0, 1, own], "loss": [2 / round, 1 / round, 0.5], "examples": [9] * 3, "norm": [1.0] * 3}
        directory.metric(round=round, split="cohort", cohort=cohort, lost=[[9, "too late"]] if round < 4 else [])
        accuracy = 1 - 0.6 / round
        directory.metric(**place, split="validation", loss=1 / round, accuracy=accuracy)
        directory.metric(**place, split="clients", loss=1 / round, accuracy=accuracy - 0.05, spread=spread(accuracy))
    return directory


def summary(**extra: object) -> dict[str, object]:
    scores = {"loss": 0.2, "accuracy": 0.9}
    return {
        "ended": "done",
        "rounds": 6,
        "split": "test",
        "metrics": scores,
        "parameters": 3682,
        "wall_s": 3.0,
        **extra,
    }


def test_the_head_says_how_good_it_is_for_the_clients_and_what_it_took(tmp_path):
    with federation(tmp_path) as directory:
        directory.summary(summary())
        page = page_of(directory)
    assert "federate · 10 clients, 3 a round · seed 3" in page.text
    assert "test accuracy 90.0% clients' accuracy 85.0% ± 5.0%; worst 60.0%, client 7" in page.text
    assert "rounds 6 moved 300 kB 120 kB up, 180 kB down simulated time 2:00 time 3.0 s parameters 3,682" in page.text
    assert "steps" not in page.text


def test_a_federation_that_goes_on_says_how_far_it_is(tmp_path):
    with federation(tmp_path, rounds=2) as directory:
        page = page_of(directory)
    assert "validation accuracy 70.0%" in page.text and "rounds 2 of 6" in page.text


def test_curves_go_over_rounds_with_the_clients_between_their_quantiles(tmp_path):
    with federation(tmp_path) as directory:
        text = write_report(directory.path).read_text()
    loss = re.search(r'aria-label="Loss: .*?</svg>', text)[0]
    assert "train from 2.000 at round 1 to 0.3333 at round 6" in loss and ">round</text>" in loss and "step" not in loss
    assert loss.count('class="curve s-clients"') == loss.count('class="curve s-validation"') == 1
    accuracy = re.search(r'aria-label="Accuracy over rounds.*?</svg>', text)[0]
    band = re.search(r'polygon class="band s-clients" points="([^"]*)"', accuracy)[1].split()
    heights = [float(corner.split(",")[1]) for corner in band]
    dots = [float(y) for y in re.findall(r'dot s-clients" cx="[\d.]+" cy="([\d.]+)"', accuracy)]
    assert len(heights) == 12 and len(dots) == 6
    # q10 is 0.1 below the mean and q90 0.05 above it; the clients together are 0.05 below it
    assert (heights[0] - dots[0]) / (dots[0] - heights[-1]) == pytest.approx(0.05 / 0.1, abs=0.02)
    assert accuracy.count('class="member s-clients"') == 1  # the worst client


def test_accuracy_over_simulated_time_stands_beside_accuracy_over_rounds(tmp_path):
    with federation(tmp_path) as directory:
        text = write_report(directory.path).read_text()
    over_time = re.search(r'aria-label="Accuracy over simulated time.*?</svg>', text)[0]
    assert "validation from 0.4000 at simulated seconds 20 to 0.9000 at simulated seconds 120" in over_time
    with federation(tmp_path, name="no-devices", devices=False) as directory:
        text = write_report(directory.path).read_text()
    assert "simulated" not in text and 'aria-label="Accuracy: ' in text


def test_bytes_are_added_up_over_rounds(tmp_path):
    with federation(tmp_path) as directory:
        text = write_report(directory.path).read_text()
    moved = re.search(r'aria-label="Moved so far.*?</svg>', text)[0]
    assert "down from 30.00 at round 1 to 180.0 at round 6" in moved and "up from 20.00 at round 1 to 120.0" in moved


def test_a_round_that_was_done_twice_counts_once():
    train = [{"round": i, "split": "train", "bytes_up": 10, "loss": 1.0} for i in (1, 2, 2, 3)]
    assert Rounds.of(train).total("bytes_up") == {1: 10, 2: 20, 3: 30}


@pytest.mark.parametrize(
    "values, units, expected",
    [
        ([89.0], TIMES, "seconds"),
        ([200.0, 5.0], TIMES, "minutes"),
        ([3 * 86400.0], TIMES, "days"),
        ([], TIMES, "seconds"),
        ([2_999_999], SIZES, "kB"),
        ([3e6], SIZES, "MB"),
        ([0.0], SIZES, "bytes"),
    ],
)
def test_the_unit_of_an_axis_leaves_a_few_whole_numbers(values, units, expected):
    assert unit_of(values, units)[1] == expected


def test_the_map_shows_losses_failures_and_who_was_lost(tmp_path):
    with federation(tmp_path) as directory:
        text = write_report(directory.path).read_text()
    drawn = re.search(r'aria-label="Clients by round.*?</svg>', text)[0]
    assert "<title>client 0, round 1: loss 2.000</title>" in drawn
    assert "<title>client 4, round 2: loss 0.5000; quarantined: update has norm 6.5, above 2.8</title>" in drawn
    assert "<title>client 9, round 3: lost: too late</title>" in drawn
    assert drawn.count('class="lost"') == 3 + 1 and drawn.count('class="away"') == 3 + 1  # one of each is the legend's
    cells = {int(c): float(o) for o, c in re.findall(r'fill-opacity="([\d.]+)"><title>client (\d+), round 1:', drawn)}
    assert cells[0] > cells[1] > cells[3] > 0  # the higher the loss, the stronger


def test_of_many_clients_and_rounds_a_part_is_drawn_and_that_is_said():
    cohorts = [
        {"round": r, "cohort": {"client": [r % 100, 100 + r % 7], "loss": [1.0, 3.0 if r % 2 else 1.0]}, "lost": []}
        for r in range(1, 301)
    ]
    drawn = cohort_map(cohorts, [])
    assert "the 60 of 107 clients that took part most often" in drawn and "3 rounds to a column" in drawn
    titles = re.findall(r"<title>client (\d+), (.*?): loss ([\d.]+)</title>", drawn)
    clients, columns = {int(client) for client, _, _ in titles}, {rounds for _, rounds, _ in titles}
    assert len(clients) == MAX_CLIENTS and len(columns) == 100 <= MAX_COLUMNS
    assert set(range(100, 107)) < clients  # they trained 42 times, the others 3
    assert "rounds 298 to 300" in columns


def test_rounds_that_share_a_column_show_the_mean_loss():
    def record(round: int, loss: float) -> dict[str, object]:
        return {"round": round, "cohort": {"client": [5], "loss": [loss]}}

    drawn = cohort_map([record(1, 1.0), record(2, 2.0), record(240, 9.0)], [])
    assert "<title>client 5, rounds 1 to 2: loss 1.500</title>" in drawn


def test_one_that_failed_while_it_judged_took_no_part_in_the_round():
    cohorts = [{"round": 1, "cohort": {"client": [0], "loss": [1.0]}}]
    away = absences(cohorts, [{"event": "client_failed", "round": 1, "client": 8, "reason": "no answer"}])
    assert len(away) == 1 and "client 8" not in cohort_map(cohorts, away)


def test_a_loss_that_is_no_number_is_marked(tmp_path):
    with RunDirectory.create(tmp_path / "run", verb="federate") as directory:
        directory.metric(round=1, split="cohort", cohort={"client": [0, 1], "loss": [1.0, math.nan]}, lost=[])
        text = write_report(directory.path).read_text()
    assert "client 1, round 1: no loss" in text and text.count('class="lost"') == 2


def test_who_did_not_count_is_a_table_with_the_most_frequent_reason_first(tmp_path):
    with federation(tmp_path) as directory:
        for round in (1, 2, 3, 4):
            trace = "Traceback (most recent call last):\n  boom"
            directory.event("client_failed", round=round, client=1, reason="ValueError: boom", traceback=trace)
        directory.event("quarantined", round=6, client=8, reason="update has norm 10.5, above 2.8")  # said before
        page = page_of(directory)
    table = page.text[page.text.index("Who did not count") : page.text.index("How the clients fare")]
    assert "what why who, most often first rounds times failed ValueError: boom 1 (4x) 1 to 4 4" in table
    assert "quarantined update has norm 10.5, above 2.8 4, 6, 8 2 to 6 3" in table
    assert "lost too late 9 (3x) 1 to 3 3" in table and "boom 1 (4x)" in table
    assert table.count("Traceback") == 1 and "client 1 in round 4: ValueError: boom" in table
    assert page.text[page.text.index("Events") :].count("quarantined") == 0  # not once more, one by one


def test_how_the_clients_fare_is_told_of_the_shared_model_and_of_their_own(tmp_path):
    with federation(tmp_path) as directory:
        page = page_of(directory)
        directory.metric(round=6, split="personal", accuracy=0.99, spread=spread(0.95))
        richer = page_of(directory)
    assert "The shared model after round 6" in page.text and "Personal models" not in page.text
    assert "accuracy 85.0% 90.0% 5.0% 80.0% 90.0% 95.0% 60.0% 7 10" in page.text
    assert "Personal models after round 6" in richer.text and "personal accuracy 99.0%" in richer.text


def test_the_partition_is_in_the_page_if_it_is_in_the_run(tmp_path):
    with federation(tmp_path) as directory:
        (directory.path / "partition.svg").write_text(SVG)
        page = page_of(directory)  # which has no address of another place in it
    assert "Partition" in page.text and "labels" in page.text


@pytest.mark.parametrize(
    "drawing",
    [
        SVG.replace("<circle", "<script>alert(1)</script><circle"),
        SVG.replace('r="3"', 'r="3" onclick="alert(1)"'),
        SVG.replace("<circle", '<text href="http://elsewhere"/><circle'),
        SVG.replace('r="3"', 'fill="url(http://elsewhere)"'),
        "<p>hello</p>",
        "",
    ],
)
def test_a_drawing_that_could_do_anything_is_left_out(drawing):
    assert drawing_of(SVG).startswith("<svg fill=") and drawing_of(drawing) == ""


def test_a_federation_that_went_on_shows_where(tmp_path):
    with federation(tmp_path, rounds=4) as directory:
        directory.event("federation", clients=10, cohort=3, round=3)
        assert "resumed" in re.search(r'aria-label="Loss: .*?</svg>', write_report(directory.path).read_text())[0]


def test_odd_records_do_not_stop_the_page(tmp_path):
    with federation(tmp_path) as directory:
        for odd in (None, "x", True, -1, [1]):
            directory.metric(round=odd, split="train", loss=1.0, spread=3)
        directory.metric(round=7, split="train", loss=HOSTILE, bytes_up=None, clients=HOSTILE, failed=math.nan)
        directory.metric(round=7, split="cohort", cohort={"client": [HOSTILE, 1], "loss": "x"}, lost=[[1], 2, None])
        directory.metric(round=8, split="cohort", cohort=HOSTILE, lost=HOSTILE)
        directory.metric(round=7, split="clients", accuracy=HOSTILE, spread={HOSTILE: {"worst_client": HOSTILE}})
        directory.event("quarantined", round=7, client=1, reason=HOSTILE)
        directory.event("client_failed", round=None, client=HOSTILE, traceback=HOSTILE)
        directory.event("federation", clients=HOSTILE)
        directory.summary({"metrics": 3, "split": None, "rounds": HOSTILE})
        page = page_of(directory)
    assert "<script>alert" in page.text


def test_trees_that_have_neither_losses_nor_bytes_have_a_page(tmp_path):
    with RunDirectory.create(tmp_path / "run", verb="federate-trees") as directory:
        for round in (1, 2):
            directory.metric(round=round, rounds=2, split="clients", accuracy=0.4 * round)
        directory.event("quarantined", round=2, client=1, reason="a tree is too deep")
        directory.summary({"rounds": 2, "split": "test", "metrics": {"accuracy": 0.75}})
        page = page_of(directory)
    assert "test accuracy 75.0% clients' accuracy 80.0% rounds 2" in page.text and "moved" not in page.text
    assert "a tree is too deep" in page.text and "clients from 0.4000 at round 1 to 0.8000 at round 2" in page.text


def test_a_federation_that_measured_nothing_has_a_page(tmp_path):
    with RunDirectory.create(tmp_path / "run", verb="federate") as directory:
        page = page_of(directory)
    assert "Nothing has been measured yet." in page.text and "svg" not in page.tags


def test_the_rounds_are_there_as_tables(tmp_path):
    with federation(tmp_path) as directory:
        page = page_of(directory)
    assert "6 train records as a table round loss clients failed bytes up bytes down simulated s seconds" in page.text
    assert "1 2.000 3 1 20.0 kB 30.0 kB 20.00 0.5000" in page.text
    assert "6 clients records as a table round loss accuracy" in page.text


def test_every_drawing_of_a_federation_is_described(tmp_path):
    with federation(tmp_path) as directory:
        text = write_report(directory.path).read_text()
    assert text.count("<svg ") == text.count('role="img"') == text.count("<desc>") == text.count('aria-label="') == 6


# --- several in one picture ----------------------------------------------------------------------------------------


def compared(root: Path, **second: object) -> tuple[Checked, str]:
    with federation(root, name="1124-0900-sync-7f3a"), federation(root, name="1124-0901-buffered-9c1d", **second):
        runs = [read_run(path) for path in sorted(root.iterdir()) if path.is_dir() and not path.is_symlink()]
        differences = [{"what": "strategy.kind", runs[0].id: '"fedavg"', runs[1].id: '"fedbuff"'}]
        text = compare_pages(runs, differences)
    return Checked(text), text


def test_runs_are_drawn_together_over_rounds_time_and_bytes(tmp_path):
    page, text = compared(tmp_path, rounds=3)
    for words in ("over rounds", "over simulated time", "over what was sent"):
        chart = re.search(rf'aria-label="Accuracy {words}.*?</svg>', text)[0]
        assert "sync from 0.4000" in chart and "buffered from 0.4000" in chart
        assert chart.count('class="curve s-train"') == chart.count('class="curve s-validation"') == 1
    assert "sync from 0.4000 at simulated seconds 20 to 0.9000 at simulated seconds 120" in text
    assert "buffered from 0.4000 at kB moved 50 to 0.8000 at kB moved 150" in text
    assert "sync - 90.0% 85.0% - 60.0% 6 300 kB 2:00" in page.text
    assert 'strategy.kind "fedavg" "fedbuff"' in page.text


def test_the_first_round_that_reaches_an_accuracy_is_told_of_each(tmp_path):
    page, _ = compared(tmp_path, rounds=3)
    assert "80% round 3, 1:00, 150 kB round 3, 1:00, 150 kB" in page.text
    assert "90% round 6, 2:00, 300 kB -" in page.text and "95%" not in page.text


def test_a_run_without_a_clock_has_no_curve_over_time(tmp_path):
    page, text = compared(tmp_path, devices=False)
    chart = re.search(r'aria-label="Accuracy over simulated time.*?</svg>', text)[0]
    assert "sync from" in chart and "buffered" not in chart
    assert "buffered - 90.0% 85.0% - 60.0% 6 300 kB -" in page.text


def test_runs_of_one_name_keep_their_whole_names(tmp_path):
    with federation(tmp_path, name="1124-0900-a-7f3a"), federation(tmp_path, name="1124-0901-a-9c1d"):
        text = compare_pages([read_run(tmp_path / name) for name in ("1124-0900-a-7f3a", "1124-0901-a-9c1d")])
    assert "1124-0900-a-7f3a from" in text and "1124-0901-a-9c1d from" in text


def test_only_federations_are_drawn_together(tmp_path):
    with (
        RunDirectory.create(tmp_path / "plain", verb="train") as directory,
        pytest.raises(DataError, match="plain: is no"),
    ):
        compare_pages([directory.run])


def test_a_small_chart_counts_what_its_frame_says():
    series = Rounds.of([{"round": r, "split": "train", "loss": 1.0} for r in (1, 2)]).series("train", "loss")
    chart = line_chart("Loss", [series], replace(SMALL, axis="round"))
    assert ">round</text>" in chart and 'class="small"' in chart and "step" not in chart
