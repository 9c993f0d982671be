import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from core.errors import DataError, ResourceError
from core.storage.store import RunDirectory
from hanse.report import write_report
from hanse.report.charts import Scale, Series, heat_map, line_chart

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert('x')</script>\"&"


class Checked(HTMLParser):
    """Parses a page; fails if tags are not balanced or anything is fetched from elsewhere."""

    EMPTY = frozenset({"meta"})  # all others must be closed

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == [], self.open

    def handle_startendtag(self, tag, attributes):
        self.check(tag, attributes)

    def handle_starttag(self, tag, attributes):
        self.check(tag, attributes)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def check(self, tag, attributes):
        self.tags.append(tag)
        assert tag not in {"script", "link", "img", "iframe", "object", "b<"}, tag
        names = [name for name, _ in attributes]
        assert not {"src", "href", "srcset"} & set(names), (tag, names)
        assert not any(name.startswith("on") for name in names), (tag, names)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(directory: RunDirectory) -> Checked:
    text = write_report(directory.path).read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text and "http" not in text
    for path in re.findall(r' d="([^"]*)"', text):
        assert "nan" not in path and "inf" not in path
    return Checked(text)


def trained(root: Path, steps: int = 100) -> RunDirectory:
    directory = RunDirectory.create(root / "digits-7f3a", verb="train", seed=3)
    directory.config("name: digits\ntrain:\n  steps: 100\n")
    directory.event("started", step=0)
    for step in range(1, steps + 1):
        directory.metric(step=step, split="train", loss=2 / step, lr=0.003, grad_norm=1 / step, examples_per_s=51000.0)
        if step % 25 == 0:
            directory.metric(step=step, split="validation", loss=3 / step, accuracy=1 - 1 / step)
    directory.metric(step=steps, split="test", loss=0.04, accuracy=0.9625)
    return directory


def summary(**extra: object) -> dict[str, object]:
    best = {"step": 75, "metric": "loss", "value": 0.04}
    scores = {"loss": 0.04321, "accuracy": 0.9625, "f1_macro": 0.9611}
    return {"steps": 100, "split": "test", "metrics": scores, "best": best, "wall_s": 7.5, "parameters": 62346, **extra}


def test_a_finished_run_shows_its_numbers_curves_config_and_events(tmp_path):
    with trained(tmp_path) as directory:
        directory.event("checkpoint_rejected", checkpoint="step-000050", reason="it was cut short")
        directory.summary(summary())
        directory.finish("done")
        page = page_of(directory)
    for words in ("digits-7f3a", "test accuracy 96.2%", "0.04321", "62.3", "best, step 75", "7.5 s", "51,000"):
        assert words in page.text, words
    for words in ("Learning curves", "validation 0.03000", "Gradient norm", "Learning rate", "checkpoint rejected"):
        assert words in page.text, words
    assert "name : digits" in page.text and "seed 3" in page.text
    assert page.tags.count("svg") == 5 and page.tags.count("polygon") == 1


def test_a_classifier_shows_its_matrix_and_scores_by_class(tmp_path):
    details = {"confusion": [[8, 2], [0, 10]], "classes": ["malignant", "benign"]}
    with trained(tmp_path) as directory:
        directory.summary(summary(details=details))
        page = page_of(directory)
    assert "malignant 1.000 0.800 0.889 10" in page.text
    assert "benign 0.833 1.000 0.909 10" in page.text
    assert "2 mistakes, most often malignant taken for benign (2)." in page.text
    assert "malignant predicted as benign: 2 (20.0%)" in page.text


@pytest.mark.parametrize("count", [1, 40, 41, 200])
def test_any_number_of_classes_fits(tmp_path, count):
    confusion = [[(7 if i == j else 0) + (i + 1 == j) for j in range(count)] for i in range(count)]
    with trained(tmp_path) as directory:
        directory.summary(summary(details={"confusion": confusion, "classes": [f"c{i}" for i in range(count)]}))
        page = page_of(directory)
    assert page.tags.count("rect") == (count * count if count <= 40 else 0)
    assert ("of 200 with the lowest F1" in page.text) == (count == 200)


def test_samples_are_shown_with_their_white_space(tmp_path):
    with trained(tmp_path) as directory:
        directory.summary(summary(samples=[{"prompt": "def ", "text": "f():\n    return 1"}]))
        assert "f():\n    return 1" in write_report(directory.path).read_text()


def test_every_text_of_a_run_is_escaped(tmp_path):
    with RunDirectory.create(tmp_path / "run", verb=HOSTILE, command=[HOSTILE], data={"path": HOSTILE}) as directory:
        directory.config(f"name: {HOSTILE}\n{HOSTILE}: 1\n")
        directory.event(HOSTILE, **{HOSTILE: HOSTILE, "list": [HOSTILE], "map": {HOSTILE: 1}})
        for split in ("train", "validation", HOSTILE):
            directory.metric(step=1, split=split, loss=1.0, **{HOSTILE: 2.0})
        directory.summary(
            {
                "steps": 1,
                "split": HOSTILE,
                "metrics": {"loss": 1.0, HOSTILE: 1.0},
                "best": {"step": 1, "metric": HOSTILE, "value": 1.0},
                "details": {"confusion": [[1, 1], [1, 1]], "classes": [HOSTILE, "b"]},
                "samples": [{"prompt": HOSTILE, "text": HOSTILE}],
                "weights_sha256": HOSTILE,
            }
        )
        directory.finish("failed", HOSTILE)
        page = page_of(directory)  # parses, has no script, and is balanced
    assert page.text.count("<script>alert") > 10


def test_a_run_that_failed_shows_why_and_how_far_it_came(tmp_path):
    with trained(tmp_path, steps=30) as directory:
        directory.finish("failed", "train: the loss is not finite at step 31; lower optimizer.lr")
        page = page_of(directory)
    assert "failed" in page.text and "lower optimizer.lr" in page.text
    assert "validation accuracy 96.0%" in page.text  # the newest validation, not a test that never came


def test_a_run_that_goes_on_or_was_killed_says_so(tmp_path):
    with RunDirectory.create(tmp_path / "run") as directory:
        directory.metric(step=10, steps=500, split="train", loss=2.5)
        page = page_of(directory)
        assert "running" in page.text and "steps 10 of 500" in page.text
        assert page.tags.count("circle") == 1  # a single point is a dot
    assert "killed" in page_of(directory).text


def test_a_run_that_measured_nothing_has_a_page(tmp_path):
    with RunDirectory.create(tmp_path / "run") as directory:
        page = page_of(directory)
    assert "Nothing has been measured yet." in page.text and "svg" not in page.tags


@pytest.mark.parametrize("lost", [math.nan, math.inf, None, "text", True])
def test_a_value_that_is_no_number_leaves_a_gap_and_a_mark(tmp_path, lost):
    with RunDirectory.create(tmp_path / "run") as directory:
        for step, loss in enumerate([3.0, 2.0, lost, 1.0, 0.5], 1):
            directory.metric(step=step, split="train", loss=loss)
        text = write_report(directory.path).read_text()
        page = page_of(directory)
    assert "train, step 3: not finite" in page.text
    curve = re.search(r'class="curve s-train" d="([^"]*)"', text)
    assert curve is not None and curve[1].count("M") == 2


def test_a_run_with_no_finite_loss_says_so(tmp_path):
    with RunDirectory.create(tmp_path / "run") as directory:
        directory.metric(step=1, split="train", loss=math.nan)
        assert "Loss: no finite value yet." in page_of(directory).text


def test_values_of_any_size_can_be_drawn(tmp_path):
    with RunDirectory.create(tmp_path / "run") as directory:
        for step, value in enumerate([0.0, -1e300, 1e300, 1e-300, 5, -0.0, 2**70], 1):
            directory.metric(step=step, split="train", loss=value, lr=1e-12, grad_norm=abs(value), accuracy=0)
            directory.metric(step=step * 10**12, split="validation", loss=7, perplexity=value)
        page_of(directory)


def test_odd_records_are_left_out_and_do_not_stop_the_page(tmp_path):
    with trained(tmp_path) as directory:
        directory.metric(note="no step", split="train", loss=1.0)
        directory.metric(step="x", split="train", loss=1.0)
        directory.metric(step=3, split=None)
        directory.event("odd", time=None)
        directory.update(start="yesterday", data="a file", workers={"min": 1, "max": 4})
        wrong = {"confusion": [[1, 2], [3]], "classes": None}
        directory.summary(summary(details=wrong, best=None, samples=["text"], metrics=None, parameters=None))
        page = page_of(directory)
    assert "Learning curves" in page.text and "Confusion" not in page.text


def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path):
    with trained(tmp_path) as directory:
        directory.summary(summary())
        (directory.path / "metrics.jsonl").write_text('{"step": 1}\nbroken\n')
        (directory.path / "events.jsonl").write_text("[]\n")
        page = page_of(directory)
        (directory.path / "summary.json").write_text("{")
        worse = page_of(directory)
    assert "metrics.jsonl:2: is not a JSON object" in page.text and "events.jsonl:1" in page.text
    assert "test accuracy 96.2%" in page.text
    assert "summary.json: is not whole JSON" in worse.text


def test_the_table_of_a_chart_holds_its_numbers(tmp_path):
    with trained(tmp_path, steps=1000) as directory:
        page = page_of(directory)
    assert "1000 train records, every 5th as a table" in page.text
    assert "40 validation records as a table" in page.text
    assert "999.0" not in page.text and "1,000 0.002000 0.003000" in page.text  # the last record is in it


def test_a_long_run_makes_a_small_file_that_keeps_its_peak(tmp_path):
    points = [(float(step), 1.0 + (step == 7_777)) for step in range(20_000)]
    chart = line_chart("Loss", [Series("train", points)])
    assert len(chart) < 20_000
    top = min(float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", chart))
    assert top < 40  # the peak at twice the level reaches the upper edge


def test_the_gap_lies_between_the_curves_where_both_are():
    train = Series("train", [(float(s), 1.0) for s in range(0, 101, 10)])
    validation = Series("validation", [(25.0, 3.0), (75.0, 2.0)])
    chart = line_chart("Loss", [train, validation], gap=True)
    points = [
        tuple(map(float, p.split(","))) for p in re.search(r'polygon class="gap" points="([^"]*)"', chart)[1].split()
    ]
    x = Scale(0, 100, 58, 908)
    assert {p[0] for p in points} == {round(x(s), 1) for s in (25, 30, 40, 50, 60, 70, 75)}
    assert len({p[1] for p in points}) == 3  # validation's two values and training's one
    assert "polygon" not in line_chart("Loss", [train], gap=True)


def test_labels_at_the_end_do_not_cover_each_other():
    series = [Series(split, [(0.0, 0.0), (1.0, value)]) for split, value in zip("abc", (1, 1.001, 1.002), strict=True)]
    chart = line_chart("Loss", series)
    places = sorted(float(y) for y in re.findall(r'class="end s-\w" x="[\d.]+" y="([\d.]+)"', chart))
    assert all(b - a > 14 for a, b in itertools.pairwise(places))


@pytest.mark.parametrize(
    "low, high, log",
    [(0, 1, False), (0.9, 0.95, False), (-3, 7, False), (1e-7, 3e-7, False), (1e-4, 50, True), (1, 90, True)],
)
def test_ticks_are_round_few_and_inside(low, high, log):
    ticks = Scale(low, high, 0, 100, log).ticks(6)
    assert 2 <= len(ticks) <= 9
    assert all(low * (1 - 1e-9) - 1e-12 <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert all(float(f"{tick:.2g}") == pytest.approx(tick) for tick in ticks)


def test_the_matrix_colors_by_share_of_the_row():
    chart = heat_map([[3, 1], [0, 5]], ["a", "b"])
    opacity = [float(value) for value in re.findall(r'fill-opacity="([\d.]+)"', chart)]
    assert opacity[3] > opacity[0] > opacity[1] > opacity[2]
    assert re.findall(r'<g class="(\w+)"', chart) == ["right", "wrong", "none", "right"]


def test_every_drawing_is_described(tmp_path):
    with trained(tmp_path) as directory:
        directory.summary(summary(details={"confusion": [[1]], "classes": ["a"]}))
        text = write_report(directory.path).read_text()
    assert text.count("<svg ") == text.count('role="img"') == text.count("<desc>") == text.count('aria-label="')
    assert "train from 2.000 at step 1 to 0.02000 at step 100" in text


def test_no_run_and_no_room_are_one_line_each(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="is not a run directory"):
        write_report(tmp_path)
    with RunDirectory.create(tmp_path / "run") as directory:
        (directory.path / "report.html").mkdir()
        with pytest.raises(ResourceError, match=r"report\.html: cannot be written: Is a directory") as error:
            write_report(directory.path)
    assert "\n" not in str(error.value)


def test_the_report_imports_no_torch():
    program = (
        "import sys, json, hanse.report; print(json.dumps(sorted({'torch', 'numpy', 'yaml'} & sys.modules.keys())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == []


# --- many members --------------------------------------------------------------------------------------------------


def repeated(root: Path, members: int = 3, steps: int = 60) -> RunDirectory:
    """A run of `members` seeds; member i has a loss of (i + 1) / step."""
    directory = RunDirectory.create(root / "digits-9c1d", verb="train", seed=0)
    directory.event("started", step=0)
    for i in range(members):
        name = f"seed-{i}"
        for step in range(1, steps + 1):
            directory.metric(step=step, split="train", member=name, loss=(i + 1) / step, lr=0.003)
            if step % 20 == 0:
                directory.metric(step=step, split="validation", member=name, loss=(i + 2) / step, accuracy=0.9 + i / 20)
        directory.metric(step=steps - i, split="test", member=name, loss=0.1, accuracy=0.95)
    return directory


def repeat_summary(members: int = 3, **extra: object) -> dict[str, object]:
    spread = {
        "accuracy": {"mean": 0.95, "std": 0.0123, "low": 0.92, "high": 0.98, "members": members},
        "loss": {"mean": 0.1, "std": None, "low": None, "high": None, "members": 1},
    }
    bins = [{"low": i / 15, "high": (i + 1) / 15, "count": 0, "confidence": None, "accuracy": None} for i in range(15)]
    bins[14] |= {"count": 150, "confidence": 0.99, "accuracy": 0.97}
    bins[8] |= {"count": 30, "confidence": 0.56, "accuracy": 0.6}
    uncertainty = {"expected_calibration_error": 0.02345, "mutual_information": 0.01, "reliability": bins}
    ensemble = {"accuracy": 0.975, "loss": 0.08}
    rows = [
        {
            "member": f"seed-{i}",
            "seed": i,
            "fold": None,
            "bootstrap": None,
            "ended": "done",
            "steps": 60,
            "metrics": {"accuracy": 0.95, "loss": 0.1},
            "weights_sha256": "abc123" * 10,
        }
        for i in range(members)
    ]
    return {
        "ended": "done",
        "steps": 60,
        "split": "test",
        "metrics": {"accuracy": 0.95, "loss": 0.1},
        "spread": spread,
        "repeat": {"seeds": members, "folds": 0, "bootstraps": 0},
        "ensemble": {"split": "test", "members": members, "examples": 180, "metrics": ensemble}
        | {"uncertainty": uncertainty},
        "members": rows,
        **extra,
    }


def test_a_repeat_shows_mean_and_interval_beside_the_ensemble(tmp_path):
    with repeated(tmp_path) as directory:
        directory.summary(repeat_summary())
        directory.finish("done")
        page = page_of(directory)
    assert "test accuracy 95.0% ± 1.2% mean of 3; 95% interval 92.0% to 98.0%" in page.text
    assert "ensemble accuracy 97.5% 3 members together" in page.text
    assert "3 seeds" in page.text
    assert "accuracy 95.0% 1.2% 92.0% to 98.0% 3 97.5%" in page.text  # the table of scores
    assert "loss 0.1000 - - 1 0.08000" in page.text


def test_curves_of_members_are_their_mean_with_a_band_and_each_of_them(tmp_path):
    with repeated(tmp_path) as directory:
        text = write_report(directory.path).read_text()
        page = page_of(directory)
    assert "mean of 3 members; shaded: ± 1 standard deviation; thin: each of them" in page.text
    loss = re.search(r'<svg class="".*?</svg>', text)[0]
    assert loss.count('class="band s-train"') == loss.count('class="band s-validation"') == 1
    assert loss.count('class="member s-train"') == 3 and "gap" not in loss
    assert "validation 0.05000" in page.text  # the mean of 2, 3 and 4 over 60
    assert "test 0.1000" in page.text  # though its members stopped at different steps
    assert "60 train means over members as a table" in page.text
    assert "60 0.03333 0.01667" in page.text  # mean and standard deviation of 1, 2 and 3 over 60


def test_the_band_is_one_standard_deviation_and_never_beyond_what_was_seen():
    points = [(float(step), 5.0) for step in range(1, 11)]
    chart = line_chart("Loss", [Series("train", points, band=((4.0, 7.0),) * 10)])
    corners = re.search(r'polygon class="band s-train" points="([^"]*)"', chart)[1].split()
    heights = [float(corner.split(",")[1]) for corner in corners]
    assert len(heights) == 20 and len(set(heights)) == 2
    line = float(re.search(r'curve s-train" d="M[\d.]+ ([\d.]+)', chart)[1])
    assert (line - min(heights)) / (max(heights) - line) == pytest.approx(2, abs=0.02)


def test_an_accuracy_has_no_band_above_one(tmp_path):
    with RunDirectory.create(tmp_path / "run") as directory:
        for step in (1, 2):
            for i, value in enumerate([1.0, 1.0, 0.4]):
                directory.metric(step=step, split="validation", member=f"seed-{i}", accuracy=value, loss=1.0)
        text = write_report(directory.path).read_text()
    accuracy = re.search(r'aria-label="Accuracy.*?</svg>', text)[0]
    y = {float(place) for place in re.findall(r"[\d.]+,([\d.]+)", re.search(r'points="([^"]*)"', accuracy)[1])}
    tick = re.search(r'y="([\d.]+)" text-anchor="end">1<', accuracy)[1]
    assert min(y) == pytest.approx(float(tick) - 4, abs=0.2)  # the upper edge is at 1; a tick's text stands 4 below


def test_of_many_members_only_the_band_is_drawn(tmp_path):
    with repeated(tmp_path, members=13, steps=20) as directory:
        text = write_report(directory.path).read_text()
    assert 'class="band s-train"' in text and 'class="member' not in text
    assert "mean of 13 members; shaded: ± 1 standard deviation<" in text


def test_members_that_failed_are_marked_with_why(tmp_path):
    summary = repeat_summary()
    summary["members"] += [{"member": "seed-3", "seed": 3, "error": "train: the loss is not finite at step 9"}]
    with repeated(tmp_path) as directory:
        directory.summary(summary)
        page = page_of(directory)
    assert "Members 4" in page.text and "seed-0 0 95.0% 0.1000 60 done abc123abc123" in page.text
    assert "seed-3 failed: train: the loss is not finite at step 9 3 - - - - -" in page.text
    assert "1 of 4 failed and count nowhere." in page.text
    folds = [row | {"fold": i, "seed": 0} for i, row in enumerate(repeat_summary()["members"])]
    with RunDirectory.create(tmp_path / "folds") as directory:
        directory.summary(repeat_summary(members=3) | {"members": folds})
        assert "member fold seed accuracy loss steps ended weights" in page_of(directory).text


def test_the_reliability_diagram_draws_accuracy_against_confidence(tmp_path):
    with repeated(tmp_path) as directory:
        directory.summary(repeat_summary())
        text = write_report(directory.path).read_text()
        page = page_of(directory)
    assert "calibration error 0.02345" in page.text and "mutual information 0.01000" in page.text
    assert "Uncertainty the ensemble, on test, 180 examples" in page.text
    assert "confidence 99.0%, accuracy 97.0%: 150 of 180" in page.text
    diagram = re.search(r'<svg class="square".*?</svg>', text)[0]
    hits = [float(height) for height in re.findall(r'class="hit"[^>]*height="([\d.]+)"', diagram)]
    offs = [float(height) for height in re.findall(r'class="off"[^>]*height="([\d.]+)"', diagram)]
    counts = [float(height) for height in re.findall(r'class="count"[^>]*height="([\d.]+)"', diagram)]
    assert hits == pytest.approx([0.56 * 300, 0.97 * 300], abs=0.1)  # what accuracy and confidence have in common
    levels = [310 - float(y) for y in re.findall(r'class="level"[^>]*y2="([\d.]+)"', diagram)]
    assert levels == pytest.approx([0.6 * 300, 0.97 * 300], abs=0.1)
    assert offs == pytest.approx([0.04 * 300, 0.02 * 300], abs=0.1)
    assert counts[0] / counts[1] == pytest.approx((30 / 150) ** 0.5, abs=0.01)


def test_real_values_show_how_far_the_members_are_apart(tmp_path):
    ensemble = {"members": 3, "examples": 44, "split": "test", "metrics": {"r2": 0.5}, "uncertainty": {"std": 4.25}}
    with repeated(tmp_path) as directory:
        directory.summary(repeat_summary(ensemble=ensemble))
        page = page_of(directory)
    assert "std between voices 4.250" in page.text and "Reliability" not in page.text


def test_a_repeat_that_goes_on_shows_what_its_members_have_done(tmp_path):
    with RunDirectory.create(tmp_path / "run") as directory:
        directory.metric(step=10, steps=500, split="train", member="seed-0", loss=2.5)
        assert "train loss 2.500" in page_of(directory).text  # of one member: nothing to average yet
        directory.metric(step=10, steps=500, split="train", member="seed-1", loss=1.5)
        page = page_of(directory)
    assert "train loss 2.000" in page.text and "mean of 2 members" in page.text


def test_odd_repeats_do_not_stop_the_page(tmp_path):
    odd = {"spread": {"loss": 3, HOSTILE: {"mean": 1.0, "std": "x", "low": None, "members": HOSTILE}}}
    odd |= {"ensemble": {"members": HOSTILE, "split": HOSTILE, "uncertainty": {"expected_calibration_error": 0.1}}}
    odd |= {"members": ["x", {"member": HOSTILE, "error": HOSTILE}, {"member": None, "metrics": 3, "steps": HOSTILE}]}
    odd["ensemble"]["uncertainty"]["reliability"] = [{"count": 3}, 7, {"low": "x", "count": None}]
    with repeated(tmp_path) as directory:
        directory.metric(step=1, split="train", member=3, loss=1.0)
        directory.metric(step="x", split="test", member="seed-0", loss=1.0)
        directory.metric(step=1, split="train", member=HOSTILE, loss=math.nan)
        directory.summary(repeat_summary() | odd | {"repeat": "often", "split": HOSTILE})
        page = page_of(directory)
        directory.summary(repeat_summary() | {"members": 7, "ensemble": [], "spread": None})
        page_of(directory)
    assert "No prediction was counted." in page.text and "<script>alert" in page.text
