"""What is fitted on the training split and saved with the model: numbers, category maps, class names, a tokenizer.

`preprocess.json` (and `tokenizer.json`) in a model directory is all that preparing new inputs takes.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.config import Table
from core.data.labels import in_order, places_in
from core.data.sources.frame import LARGEST, TEXTS, As, Column, Columns, Numeric, Problem, Texts
from core.data.sources.notation import PLAIN, Form
from core.data.spec import Spec
from core.data.tokenizer import Tokenizer
from core.errors import DataError
from core.storage.atomic import replace_text

FORMAT = 2
ROWS = 1 << 14  # that become inputs at a time: of a wide table they stay in the cache
SHOWN_CLASSES = 10
MAX_CATEGORIES = 256  # more different texts than this in a column are names or free text, not categories


@dataclass(frozen=True)
class Number:
    """A numeric column: (value - mean) / std is the input. form: how its cells are written."""

    name: str
    mean: float
    std: float
    form: Form = PLAIN
    width = 1

    def put(self, column: Column, rows: slice, inputs: NDArray[np.float32]) -> None:
        """Fills in the inputs [rows, 1]; a cell that is empty becomes the mean."""
        assert isinstance(column, Numeric)
        values = column.values[rows]
        scaled = _in_float32((values - self.mean) / self.std, values, self.name, rows.start)
        inputs[:, 0] = np.where(np.isnan(scaled), 0.0, scaled)


@dataclass(frozen=True)
class Category:
    """A column of texts: one input per value, or one code in [0, 1]. A value never seen in training gives 0s, or -1."""

    name: str
    values: tuple[str, ...]
    one_hot: bool

    @property
    def width(self) -> int:
        """How many inputs it becomes."""
        return len(self.values) if self.one_hot else 1

    def put(self, column: Column, rows: slice, inputs: NDArray[np.float32]) -> None:
        """Fills in the inputs [rows, width]; they are zeros before."""
        assert isinstance(column, Texts)
        codes = column[rows].take(places_in(column.distinct, self.values), -1)
        if self.one_hot:
            known = np.flatnonzero(codes >= 0)
            inputs[known, codes[known]] = 1.0
        else:
            inputs[:, 0] = np.where(codes < 0, -1.0, codes / max(len(self.values) - 1, 1))


@dataclass(frozen=True)
class TableFit:
    """How the columns of a table become inputs, and its target (of real values: standardized) a target."""

    features: tuple[Number | Category, ...]
    target: str
    target_mean: float = 0.0
    target_std: float = 1.0
    fill_missing: bool = False
    target_form: Form = PLAIN

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, in the order of the inputs."""
        return tuple(feature.name for feature in self.features)

    @property
    def width(self) -> int:
        """The number of inputs F."""
        return sum(feature.width for feature in self.features)

    @property
    def wanted(self) -> dict[str, As]:
        """The columns, and what they are for this model whatever a file makes of them."""
        return {f.name: f.form if isinstance(f, Number) else TEXTS for f in self.features}

    def inputs(self, columns: Columns) -> Tensor:
        """[N, F] float32, of columns as they are `wanted`. DataError for a number that float32 cannot hold."""
        count = len(next(iter(columns.values())))
        inputs = np.zeros((count, self.width), np.float32)
        for start in range(0, count, ROWS):
            rows, at = slice(start, start + ROWS), 0
            for feature in self.features:
                feature.put(columns[feature.name], rows, inputs[rows, at : at + feature.width])
                at += feature.width
        return torch.from_numpy(inputs)

    def real_targets(self, values: NDArray[np.float64]) -> Tensor:
        """[N, 1] float32, standardized."""
        scaled = _in_float32((values - self.target_mean) / self.target_std, values, self.target)
        return torch.from_numpy(scaled)[:, None]


def _in_float32(
    scaled: NDArray[np.float64], values: NDArray[np.float64], name: str, first: int = 0
) -> NDArray[np.float32]:
    """The standardized `scaled` in float32. DataError names the first of `values` that is too large for it, which are
    those from row `first` on."""
    too_large = np.abs(scaled) > LARGEST
    if too_large.any():
        row = int(too_large.argmax())
        raise DataError(
            f"row {first + row + 1}, column '{name}': {values[row]:g} is too far from the training rows for "
            "float32; mend it"
        )
    return scaled.astype(np.float32)


def fit_table(config: Table, columns: Columns, target: str) -> TableFit:
    """Fits on `columns`, which hold the training rows and the wanted features only."""
    fill = config.missing == "mean"
    features: list[Number | Category] = []
    for name, column in columns.items():
        if isinstance(column, Texts):
            features.append(Category(name, in_order(column.present), config.categories == "one_hot"))
        else:
            features.append(Number(name, *_moments(column.values, config.normalize, fill), column.form))
    return TableFit(tuple(features), target, fill_missing=fill)


def standardization(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation, which is 1 for a constant: also where rounding leaves it a little above 0."""
    if not len(values):
        return 0.0, 1.0
    mean, variance = float(values.mean()), float(values.var())
    eps, count = float(np.finfo(np.float64).eps), len(values)
    # the bound of the rounding errors in a variance, as in scikit-learn's _is_constant_feature
    is_constant = variance <= count * eps * variance + (count * mean * eps) ** 2
    return mean, 1.0 if is_constant else variance**0.5


def _moments(values: NDArray[np.float64], normalize: bool, fill: bool) -> tuple[float, float]:
    mean, std = standardization(values[np.isfinite(values)] if fill else values)
    # a missing cell becomes the mean, so that is kept even where nothing is normalized
    return (mean, std) if normalize else (mean if fill else 0.0, 1.0)


def problems_of(columns: Columns, fill: bool, cure: str) -> list[Problem]:
    """What keeps columns from being inputs: an empty cell (if that is not filled), an infinite one, too many texts.

    `cure`: what can be done about an empty cell.
    """
    problems = []
    for name, column in columns.items():
        bad = column.bad_cell(allow_missing=fill)
        if bad is not None:
            row, what = bad
            mended = "mend it" if what.startswith("the number") else cure
            problems.append(Problem(name, f"row {row + 1}, column '{name}': {what}", mended))
        if isinstance(column, Texts) and len(column.distinct) > MAX_CATEGORIES:
            what = (
                f"column '{name}' holds {len(column.distinct)} different texts, at most {MAX_CATEGORIES} are categories"
            )
            problems.append(Problem(name, what, "leave such columns out with data.drop=[{}]"))
    return problems


@dataclass(frozen=True)
class ImageFit:
    """Per channel mean and standard deviation of pixels in [0, 1], and the size that images are resized to."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None

    def scale(self, peak: float) -> tuple[Tensor, Tensor]:
        """Mean and std [C, 1, 1] for raw pixels in [0, peak]."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None] * peak for values in (self.mean, self.std)
        )
        return mean, std


Fitted = TableFit | ImageFit | Tokenizer


@dataclass(frozen=True)
class Preprocess:
    """What turns files into the inputs of a model: its spec, and what was fitted on the training split."""

    spec: Spec
    fitted: Fitted

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a text model."""
        assert not isinstance(self.fitted, TableFit | ImageFit)
        return self.fitted

    @property
    def summary(self) -> str:
        """What the examples are, in one line."""
        shape, classes = self.spec.shape, _shown(self.spec.classes)
        if isinstance(self.fitted, TableFit):
            inputs = f"{_count(len(self.fitted.features), 'column')} -> {_count(self.fitted.width, 'input')}"
            return f"rows, {inputs}, target {self.fitted.target}{classes}"
        if isinstance(self.fitted, ImageFit):
            return f"images of {'x'.join(map(str, shape))}{', classes' if classes else ''}{classes}"
        return f"windows of {shape[0]:,} tokens, vocabulary {self.spec.outputs:,}"

    def to_units(self, values: Tensor) -> Tensor:
        """Predicted real values in the units of the target column, in float64: their mean may be large beside their
        spread."""
        if not isinstance(self.fitted, TableFit):
            return values
        return values.double() * self.fitted.target_std + self.fitted.target_mean

    def save(self, directory: str | Path) -> None:
        """Writes preprocess.json and, where there is something to write, tokenizer.json."""
        folder = Path(directory)
        if isinstance(self.fitted, TableFit | ImageFit):
            fitted = dataclasses.asdict(self.fitted)
        else:
            fitted = {**dataclasses.asdict(self.fitted.config), "sha256": self.fitted.sha256}
            content = self.fitted.to_json()
            if content is not None:
                replace_text(folder / "tokenizer.json", content)
        plain = {"format": FORMAT, "spec": dataclasses.asdict(self.spec), "fitted": fitted}
        replace_text(folder / "preprocess.json", json.dumps(plain, indent=2) + "\n")

    @staticmethod
    def load(directory: str | Path) -> "Preprocess":
        """Raises DataError if a file is missing or damaged, or the tokenizer is not the one of this model."""
        from core.data.saved import read_preprocess  # it takes a second library to check values

        return read_preprocess(Path(directory))


@dataclass(frozen=True)
class Trained:
    """What a model was trained on and with: enough to load the same splits again, prepared in the same way."""

    preprocess: Preprocess
    fingerprint: str

    def require(self, fingerprint: str, path: str) -> None:
        """Raises DataError if what lies at `path` by now is not what the model was trained on."""
        if fingerprint != self.fingerprint:
            raise DataError(
                f"data.path: its content is not what this model was trained on ({path}: sha256 {fingerprint[:12]}..., "
                f"was {self.fingerprint[:12]}...); name other data with data.path= to evaluate on it with the saved "
                "preprocessing"
            )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _shown(classes: tuple[str, ...]) -> str:
    """` (no, yes)`; the first of many, and how many there are."""
    rest = f", ... {len(classes):,} in all" if len(classes) > SHOWN_CLASSES else ""
    return f" ({', '.join(classes[:SHOWN_CLASSES])}{rest})" if classes else ""
