"""Configs: strict reading, dotted overrides, one-line errors with the dotted key, and exact round trips."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import apply, dump, dump_run, override, parse, parse_run, read, read_overrides, schema, to_yaml
from core.ensemble.repeat import Repeat
from core.errors import ConfigError
from core.models import CNN, MLP
from core.optim import SGD, AdamW
from core.recipe import Elastic, Recipe, TrainRun

MINIMAL = {"data": {"kind": "image"}, "model": {"kind": "mlp"}}


def recipe(**changes: object) -> Recipe:
    return parse(Recipe, apply(MINIMAL, changes))


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_numbers_and_words_are_read_as_yaml_1_2(tmp_path: Path) -> None:
    text = "a: 1e-3\nb: no\nc: 010\nd: 1:30\ne: .5\nf: true\ng: 3E+2\nh: ~\ni: 0x10\nj: 2026-01-01\n"
    expected = {"a": 1e-3, "b": "no", "c": 10, "d": "1:30", "e": 0.5, "f": True, "g": 300.0, "h": None, "i": "0x10"}
    assert read(written(tmp_path, text)) == {**expected, "j": "2026-01-01"}


def test_a_duplicate_key_is_refused_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml:3: key 'lr' appears twice \(first in line 2\)"):
        read(written(tmp_path, "optimizer:\n  lr: 1\n  lr: 2\n"))


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml:3: not valid YAML"):
        read(written(tmp_path, "a: 1\nb: [1, 2\n"))


def test_a_missing_file_suggests_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"no such config file; did you mean .*digits\.yaml"):
        read(tmp_path / "digit.yaml")


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a config is a mapping of keys, this file holds a list"):
        read(written(tmp_path, "- 1\n"))


def test_overrides_are_typed_like_yaml() -> None:
    words = ["train.steps=50", "model.hidden=[8, 16]", "name=no", "optimizer.lr=1e-3"]
    assert read_overrides(words) == {"train.steps": 50, "model.hidden": [8, 16], "name": "no", "optimizer.lr": 1e-3}


@pytest.mark.parametrize(
    "word, value",
    [
        ("a=/data/my #1.csv", "/data/my #1.csv"),
        ("a=#1", "#1"),
        ("a=50 # steps", "50 # steps"),
        ("a='x #1'", "x #1"),
        ("a=[x, 'y #1']", ["x", "y #1"]),
        ("a=x#1", "x#1"),
        ("a=", None),
    ],
)
def test_a_number_sign_on_the_command_line_begins_no_comment(word: str, value: object) -> None:
    assert read_overrides([word]) == {"a": value}


def test_a_character_that_yaml_does_not_have_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml:2: not valid YAML: .*U\+0001") as caught:
        read(written(tmp_path, "a: 1\nb: x\x01y\n"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"override name.*U\+001B"):
        read_overrides(["name=\x1b[31m"])


@pytest.mark.parametrize("words", [["steps"], ["=5"], ["a=1", "a=2"]])
def test_malformed_overrides_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        read_overrides(words)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train.stesp": 3}, "train.stesp: unknown key; did you mean 'steps'?"),
        ({"trian.steps": 3}, "trian: unknown key; did you mean 'train'?"),
        ({"train.steps": "many"}, "train.steps: should be a valid integer, got 'many'"),
        ({"train.steps": True}, "train.steps: should be a valid integer, got True"),
        ({"train.steps": "5"}, "train.steps: should be a valid integer, got '5'"),
        ({"train.steps": 1.5}, "train.steps: should be a valid integer, got 1.5"),
        ({"train.steps": 0}, "train.steps: must be at least 1, got 0"),
        ({"train.clip": -1}, "train.clip: must be above 0, got -1"),
        ({"train.precision": "fp8"}, "train.precision: should be 'fp32', 'bf16' or 'fp16', got 'fp8'"),
        ({"model.kind": "cn"}, "model.kind: unknown kind 'cn'; did you mean 'cnn'?"),
        ({"model": "cnn"}, "model: expected a section with a kind"),
        ({"optimizer.lr": -1}, "optimizer.lr: must be above 0"),
        ({"optimizer.lr": "fast"}, "optimizer.lr: should be a valid number, got 'fast'"),
        ({"train.steps.every": 3}, "train.steps.every: 'train.steps' is a value (5), it has no keys"),
        ({"objective.kind": "language"}, "objective.kind: language does not go with data.kind: image"),
    ],
)
def test_a_mistake_is_one_line_with_the_dotted_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run(TrainRun, apply({**MINIMAL, "train": {"steps": 5}}, changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_section_is_named() -> None:
    with pytest.raises(ConfigError, match="model: required key is missing"):
        parse_run(TrainRun, {"data": {"kind": "image"}})


def test_changing_the_kind_resets_the_section() -> None:
    base = {**MINIMAL, "optimizer": {"kind": "adamw", "betas": [0.8, 0.9], "lr": 1.0}}
    changed = parse(Recipe, apply(base, {"optimizer.lr": 0.5, "optimizer.kind": "sgd"}))
    assert changed.optimizer == SGD(lr=0.5)


def test_the_default_kind_takes_overrides_without_being_named() -> None:
    assert recipe(**{"optimizer.lr": 0.25}).optimizer == AdamW(lr=0.25)


def test_override_leaves_the_original_alone() -> None:
    first = recipe()
    second = override(first, {"model.kind": "cnn", "train.steps": 7})
    assert (first.model.kind, first.train.steps) == ("mlp", 600)
    assert isinstance(first.model, MLP)
    assert isinstance(second.model, CNN)
    assert second.train.steps == 7


@given(steps=st.integers(1, 10**6), lr=st.floats(1e-9, 1e3), clip=st.none() | st.floats(1e-6, 1e6), name=st.text())
def test_yaml_round_trips_every_recipe(
    tmp_path_factory: pytest.TempPathFactory, steps: int, lr: float, clip: float | None, name: str
) -> None:
    run = TrainRun(recipe(**{"train.steps": steps, "optimizer.lr": lr, "train.clip": clip, "name": name}), workers=2)
    path = written(tmp_path_factory.mktemp("round"), to_yaml(dump_run(run)))
    assert parse_run(TrainRun, read(path)) == run


def test_a_run_reads_its_keys_beside_those_of_the_recipe() -> None:
    run = parse_run(TrainRun, {**MINIMAL, "workers": {"min": 1, "max": 4}, "seed": 3})
    assert run.workers == Elastic(1, 4)
    assert run.recipe.seed == 3
    assert parse_run(TrainRun, {**MINIMAL, "workers": 2}).workers == 2


@pytest.mark.parametrize("repeat", [{"seeds": 8}, {"folds": 5}, {"bootstraps": 10}, {"folds": 5, "seeds": 4}])
def test_a_repeat_is_read_beside_the_recipe_and_written_back(repeat: dict[str, int], tmp_path: Path) -> None:
    run = parse_run(TrainRun, {**MINIMAL, "repeat": repeat})
    assert run.repeat == Repeat(**repeat)
    assert parse_run(TrainRun, read(written(tmp_path, to_yaml(dump_run(run))))) == run
    assert parse_run(TrainRun, apply(MINIMAL, {f"repeat.{name}": value for name, value in repeat.items()})) == run
    assert parse_run(TrainRun, MINIMAL).repeat is None


@pytest.mark.parametrize(
    "repeat, message",
    [
        ({}, r"repeat\.seeds: must be at least 2 where .* write for example repeat\.seeds=8, repeat\.folds=5"),
        ({"seeds": 1}, r"repeat\.seeds: must be at least 2"),
        ({"seeds": 0}, r"repeat\.seeds: must be at least 1, got 0"),
        ({"folds": 1}, r"repeat\.folds: must be 0 \(off\) or at least 2, got 1"),
        ({"bootstraps": -1}, r"repeat\.bootstraps: must be 0 \(off\) or at least 2, got -1"),
        ({"folds": 5, "bootstraps": 5}, r"repeat\.bootstraps: must be 0 where folds is set \(5\), got 5; keep one"),
        (8, r"repeat: should be an object, got 8"),
        ({"fold": 5}, r"repeat\.fold: unknown key; did you mean 'folds'"),
    ],
)
def test_a_repeat_that_is_none_is_refused_with_what_to_write(repeat: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        parse_run(TrainRun, {**MINIMAL, "repeat": repeat})


@dataclass(frozen=True)
class Cut:
    kind: Literal["cut"] = "cut"
    length: float = 1.0

    def __post_init__(self) -> None:
        if not self.length > 0:
            raise ValueError(f"length must be above 0, got {self.length}")


@dataclass(frozen=True)
class Fold:
    kind: Literal["fold"] = "fold"
    times: int = 2


@dataclass(frozen=True)
class Work:
    steps: tuple[Cut | Fold, ...] = ()
    sizes: tuple[int, ...] = ()


def test_a_list_of_sections_becomes_a_tuple_in_its_order_and_is_written_back(tmp_path: Path) -> None:
    work = parse(Work, {"steps": [{"kind": "fold", "times": 3}, {"kind": "cut"}], "sizes": [1, 2]})
    assert work == Work((Fold(times=3), Cut()), (1, 2))
    assert parse(Work, read(written(tmp_path, to_yaml(dump(work))))) == work
    assert override(work, {"steps": [{"kind": "cut", "length": 2}]}) == Work((Cut(length=2.0),), (1, 2))
    assert parse(Work, {"steps": []}) == parse(Work, {}) == Work()


@pytest.mark.parametrize(
    "steps, message",
    [
        (
            [{"kind": "cut"}, {"kind": "fld"}],
            "steps.1.kind: unknown kind 'fld'; did you mean 'fold'?; one of cut, fold",
        ),
        ([{"length": 2}], "steps.0.kind: required key is missing; one of cut, fold"),
        ([{"kind": "cut", "lenght": 2}], "steps.0.lenght: unknown key; did you mean 'length'?"),
        ([{"kind": "fold"}, {"kind": "cut", "length": 0}], "steps.1.length: must be above 0, got 0"),
        ([{"kind": "fold", "times": 1.5}], "steps.0.times: should be a valid integer, got 1.5"),
        (["cut"], "steps.0: expected a section with a kind (cut, fold), got 'cut'"),
        ({"kind": "cut"}, "steps: expected a list of sections with a kind, got {'kind': 'cut'}"),
        ("cut", "steps: expected a list of sections with a kind, got 'cut'"),
        (None, "steps: expected a list of sections with a kind, got None"),
    ],
)
def test_a_mistake_in_a_list_of_sections_is_named_with_its_place(steps: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        parse(Work, {"steps": steps})


def test_recipes_are_hashable_and_compare_by_value() -> None:
    assert hash(recipe()) == hash(recipe())
    assert recipe() == parse(Recipe, dump(recipe()))


def test_the_schema_refuses_what_the_parser_refuses() -> None:
    described = schema(TrainRun)
    assert {"data", "model", "train", "workers", "seed", "repeat"} <= set(described["properties"])
    assert described["required"] == ["data", "model"]
    assert described["additionalProperties"] is False
    assert all(section.get("additionalProperties") is False for section in described["$defs"].values())
