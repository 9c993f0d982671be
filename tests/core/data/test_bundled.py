"""Bundled data is what scikit-learn and the standard library hold, read without importing scikit-learn."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.data import Image, Table, Text, load
from core.data.sources import bundled
from core.errors import DataError


def test_digits_equal_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    ours, theirs = bundled.read_digits(), load_digits()
    assert np.array_equal(ours.inputs, theirs.data)
    assert np.array_equal(ours.targets, theirs.target)


@pytest.mark.parametrize("name", bundled.TABLES)
def test_tables_equal_those_of_scikit_learn(name: str) -> None:
    from sklearn import datasets

    options = {"scaled": False} if name == "diabetes" else {}
    ours, theirs = bundled.read_table(name), getattr(datasets, f"load_{name}")(**options)
    assert np.array_equal(ours.inputs, theirs.data)
    assert np.array_equal(ours.targets, theirs.target)
    assert list(ours.columns) == list(theirs.feature_names)
    assert list(ours.classes) == list(getattr(theirs, "target_names", []))


def test_bundled_classes_keep_their_order() -> None:
    assert load(Table(), "class").spec.classes == ("malignant", "benign")
    assert load(Image(), "class").spec.classes == tuple("0123456789")


def test_a_real_target_is_standardized_over_the_training_rows() -> None:
    data = load(Table(path="bundled:diabetes"), "real")
    targets = data.splits["train"].targets
    assert data.spec.outputs == 1 and data.spec.classes == ()
    assert targets.shape == (354, 1) and abs(targets.mean()) < 1e-5 and abs(targets.std(correction=0) - 1) < 1e-5
    restored = data.preprocess.to_units(targets)
    assert restored.min().round() >= 25 and restored.max().round() <= 346  # the range of the raw file
    assert (restored - restored.round()).abs().max() < 1e-3


def test_loading_digits_imports_neither_scikit_learn_nor_pandas() -> None:
    heavy = {"sklearn", "pandas", "PIL", "pyarrow", "pydantic", "tokenizers"}
    code = f"import sys; from core.data import *; load(Image(), 'class'); print({heavy} & {{*sys.modules}})"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "set()\n"


def test_bundled_text_can_be_limited() -> None:
    data = load(Text(path="bundled:python", limit_bytes=5000, context=16), "token")
    assert sum(len(t) for t in [data.splits["train"].tokens]) < 5000
    assert data.fingerprint == load(Text(path="bundled:python", limit_bytes=5000, context=32), "token").fingerprint


def test_an_unknown_bundled_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'digits'"):
        load(Image(path="bundled:digit"), "class")
    with pytest.raises(DataError, match="there are english, python"):
        load(Text(path="bundled:wine"), "token")


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        load(Image(), "class")
