"""What is saved with a model comes back as it was, and damage is noticed."""

from pathlib import Path

import numpy as np
import pytest

from core.data import BPE, Data, Image, Preprocess, Table, Text, load, open_with
from core.data.preprocess import standardization
from core.errors import ConfigError, DataError


def table(tmp_path: Path) -> Data:
    path = tmp_path / "a.csv"
    path.write_text("x,word,y\n" + "".join(f"{i / 3},{'äb'[i % 2]},{i % 3}\n" for i in range(30)))
    return load(Table(path=str(path), missing="mean"), "class")


def text(tmp_path: Path) -> Data:
    path = tmp_path / "a.txt"
    path.write_text("one two three four " * 50)
    return load(Text(path=str(path), context=8, tokenizer=BPE(vocab=270)), "token")


@pytest.mark.parametrize("make", [table, lambda _: load(Image(size=(6, 6)), "class"), lambda _: load(Table(), "class")])
def test_a_preprocessing_comes_back_as_it_was(make: object, tmp_path: Path) -> None:
    preprocess = make(tmp_path).preprocess  # type: ignore[operator]
    preprocess.save(tmp_path)
    assert Preprocess.load(tmp_path) == preprocess
    preprocess.save(tmp_path)  # over an older one
    assert Preprocess.load(tmp_path) == preprocess


@pytest.mark.parametrize("config", [Text(context=8), Text(context=8, tokenizer=BPE(vocab=280))], ids=["byte", "bpe"])
def test_a_tokenizer_comes_back_as_it_was(config: Text, tmp_path: Path) -> None:
    preprocess = load(config, "token").preprocess
    preprocess.save(tmp_path)
    loaded = Preprocess.load(tmp_path)
    assert loaded.spec == preprocess.spec and loaded.tokenizer.config == config.tokenizer
    assert loaded.tokenizer.sha256 == preprocess.tokenizer.sha256
    assert loaded.tokenizer.encode("the library") == preprocess.tokenizer.encode("the library")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    data = text(tmp_path)
    data.preprocess.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = path.read_text()
    path.write_text(content + " ")
    with pytest.raises(DataError, match=r"tokenizer\.json: does not match this model.*copy the model directory"):
        Preprocess.load(tmp_path)
    path.write_text(content[:-20])
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        Preprocess.load(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file"):
        Preprocess.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 40, -10])
def test_a_truncated_preprocessing_is_refused(keep: int, tmp_path: Path) -> None:
    table(tmp_path).preprocess.save(tmp_path)
    path = tmp_path / "preprocess.json"
    path.write_text(path.read_text()[:keep])
    with pytest.raises(DataError, match=r"preprocess\.json: is not whole JSON"):
        Preprocess.load(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"format": 99}', '{"format": 1, "spec": {}}'])
def test_a_json_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "preprocess.json").write_text(content)
    with pytest.raises(DataError, match=r"preprocess\.json: (not a preprocessing|damaged|is not a JSON object)"):
        Preprocess.load(tmp_path)


def test_a_missing_preprocessing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Preprocess.load(tmp_path)


def test_data_of_another_kind_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.kind: table does not match this model, which was trained on image"):
        open_with(load(Image(), "class").preprocess, Table())


@pytest.mark.parametrize("config, target", [(Table(), "token"), (Text(), "class")])
def test_a_target_that_the_data_cannot_have_is_refused(config: Table | Text, target: str) -> None:
    with pytest.raises(ConfigError, match=rf"objective\.kind: {target} targets do not go with data\.kind"):
        load(config, target)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.1, 3.3, 1e100, -1.7e9, 0.0])
@pytest.mark.parametrize("count", [3, 60, 100_003])
def test_a_standard_deviation_that_is_rounding_counts_as_none(value: float, count: int) -> None:
    mean, std = standardization(np.full(count, value))
    assert mean == pytest.approx(value) and std == 1.0


@pytest.mark.parametrize("mean", [0.0, 1.7e9])
def test_a_small_spread_around_a_large_mean_stays(mean: float) -> None:
    values = mean + np.array([-1e-3, 1e-3] * 50)
    assert standardization(values)[1] == pytest.approx(1e-3, rel=1e-3)
