"""Tables: from a file's columns to inputs [N, F] and targets; all that is fitted is taken from the training rows."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.config import Table
from core.data.examples import Data, Stacked
from core.data.preprocess import Preprocess, TableFit, Trained, check_cells, fit_table, standardization
from core.data.sources import bundled
from core.data.sources.columns import Columns, bad_cell, read_columns
from core.data.sources.files import bundled_name, find, nearest, sha256_file, sha256_of
from core.data.spec import Spec
from core.data.split import Indices, refuse_lonely, refuse_unseen, split_rows
from core.errors import DataError

Target = Literal["class", "real", "token"]


@dataclass(frozen=True)
class Source:
    """A table as it was read. `target` and `classes` are known of bundled data only; `name` is for messages."""

    columns: Columns
    name: str
    fingerprint: str
    target: str | None = None
    classes: tuple[str, ...] = ()


def load_table(config: Table, target: Target, seed: int, trained: Trained | None = None) -> Data:
    """Reads, splits, fits on the training rows and prepares all rows. DataError if anything is not as it must be."""
    source = _read(config)
    if trained:
        trained.require(source.fingerprint, config.path)
    name = _target_name(config, source)
    features = _features(config, source, name)
    check_cells({n: source.columns[n] for n in features}, config.missing == "mean", source.name)
    fit_target = (0.0, 1.0)
    classes: tuple[str, ...] = ()
    if target == "class":
        labels, classes = class_labels(source.columns[name], name, source)
        refuse_lonely(labels, classes, config.split, source.name)
        splits = split_rows(len(labels), config.split, seed, labels)
        refuse_unseen(splits, labels, classes, source.name)
        targets: Tensor = torch.from_numpy(labels)
    else:
        values = _reals(source.columns[name], name, source)
        splits = split_rows(len(values), config.split, seed)
        fit_target = standardization(values[splits["train"]]) if config.normalize else fit_target
    if trained:
        assert isinstance(trained.preprocess.fitted, TableFit)
        fitted = trained.preprocess.fitted
    else:
        fitted = fit_table(config, {n: source.columns[n][splits["train"]] for n in features}, name, source.name)
        fitted = TableFit(fitted.features, name, *fit_target, fitted.fill_missing)
    if target == "real":
        targets = fitted.real_targets(values)
    spec = Spec("table", (fitted.width,), len(classes) or 1, target, classes)
    inputs, weight = fitted.inputs({n: source.columns[n] for n in features}, source.name), _weights(config, source)
    rows = {split: torch.from_numpy(index) for split, index in splits.items()}
    parts = {split: _rows(inputs, targets, weight, index) for split, index in rows.items()}
    return Data(Preprocess(spec, fitted), source.fingerprint, parts, seed, rows=rows)


def open_table(preprocess: Preprocess, config: Table, wanted: bool = True) -> Data:
    """All rows of another table as the split `test`; without targets if it has no target column or they are not
    `wanted`."""
    source, spec, fitted = _read(config), preprocess.spec, preprocess.fitted
    assert isinstance(fitted, TableFit)
    inputs, targets = fitted.inputs(source.columns, source.name), None
    if wanted and fitted.target in source.columns:
        values = source.columns[fitted.target]
        if spec.target == "class":
            targets = torch.from_numpy(known_labels(values, fitted.target, spec.classes, source))
        else:
            targets = fitted.real_targets(_reals(values, fitted.target, source))
    weight = _weights(config, source) if config.weight in source.columns else None
    parts, rows = {"test": Stacked(inputs, targets, weight)}, {"test": torch.arange(len(inputs))}
    return Data(preprocess, source.fingerprint, parts, rows=rows)


def column_values(config: Table, data: Data, name: str) -> NDArray[Any]:
    """[N]: what a column holds for each training row of `data`, numbers or texts; it need not be an input.

    Raises DataError if there is no such column, a cell is empty, or the table is no longer the one of `data`.
    """
    source = _read(config)
    if source.fingerprint != data.fingerprint:
        raise DataError(f"{config.path}: has changed since it was loaded; load it again")
    if name not in source.columns:
        raise DataError(f"{source.name}: there is no column '{name}'; {nearest(name, source.columns)}")
    bad = bad_cell(source.columns[name])
    if bad is not None:
        raise DataError(f"{source.name}: row {bad[0] + 1}, column '{name}': {bad[1]}; every row needs one")
    assert data.rows is not None
    values: NDArray[Any] = source.columns[name][data.rows["train"].numpy()]
    return values


def _read(config: Table) -> Source:
    name = bundled_name(config.path, bundled.TABLES)
    if name is None:
        path = find(config.path)
        return Source(read_columns(path, config.header), config.path, sha256_file(path) if path.is_file() else "")
    table = bundled.read_table(name)
    columns: Columns = {column: table.inputs[:, i] for i, column in enumerate(table.columns)}
    columns["target"] = table.targets
    if table.classes:
        columns["target"] = np.array([table.classes[int(i)] for i in table.targets], dtype=object)
    return Source(columns, config.path, sha256_of(table.content), "target", table.classes)


def _target_name(config: Table, source: Source) -> str:
    others = [name for name in source.columns if name != config.weight]
    name = config.target or source.target or (others[-1] if others else "")
    if name not in source.columns:
        raise DataError(f"{source.name}: data.target: there is no column '{name}'; {nearest(name, source.columns)}")
    return name


def _features(config: Table, source: Source, target: str) -> list[str]:
    wanted = (
        [n for n in source.columns if n not in (target, config.weight)] if config.columns is None else config.columns
    )
    for name in wanted:
        if name not in source.columns:
            raise DataError(
                f"{source.name}: data.columns: there is no column '{name}'; {nearest(name, source.columns)}"
            )
        if name == target:
            raise DataError(f"{source.name}: data.columns: '{name}' is the target; a model must not see it as an input")
    if not wanted:
        raise DataError(f"{source.name}: there is no column to predict '{target}' from")
    return list(wanted)


def class_labels(values: NDArray[Any], name: str, source: Source) -> tuple[Indices, tuple[str, ...]]:
    """Class indices [N] and the names of the classes: numbers in their order, texts in alphabetical order."""
    _refuse_empty(values, name, source)
    if values.dtype != object:
        odd = values != np.floor(values)
        if odd.any():
            row = int(odd.argmax())
            raise DataError(
                f"{source.name}: row {row + 1}, column '{name}': {values[row]} is not a class; "
                "for real values set objective.kind=regression, for another column data.target"
            )
        distinct, labels = np.unique(values, return_inverse=True)
        classes = tuple(str(int(v)) for v in distinct)
    else:
        classes = source.classes or tuple(sorted(set(values.tolist())))
        index = {value: i for i, value in enumerate(classes)}
        labels = np.array([index[value] for value in values.tolist()])
    if len(classes) < 2 or len(classes) > max(20, len(values) // 2):
        raise DataError(
            f"{source.name}: column '{name}' holds {len(classes)} classes in {len(values)} rows: not a target; "
            "name another column in data.target, or set objective.kind=regression"
        )
    return labels.astype(np.int64), classes


def known_labels(values: NDArray[Any], name: str, classes: tuple[str, ...], source: Source) -> Indices:
    """Class indices [N] into known classes. DataError for a label that is none of them."""
    _refuse_empty(values, name, source)
    index = {value: i for i, value in enumerate(classes)}
    words = [v if isinstance(v, str) else f"{v:.15g}" for v in values.tolist()]
    odd = next((row for row, word in enumerate(words) if word not in index), None)
    if odd is not None:
        raise DataError(
            f"{source.name}: row {odd + 1}, column '{name}': '{words[odd]}' is no class of this model; "
            f"{nearest(words[odd], classes)}"
        )
    return np.array([index[word] for word in words], np.int64)


def _refuse_empty(values: NDArray[Any], name: str, source: Source) -> None:
    bad = bad_cell(values)
    if bad is not None:
        raise DataError(f"{source.name}: row {bad[0] + 1}, column '{name}': {bad[1]}; every row needs its target")


def _reals(values: NDArray[Any], name: str, source: Source) -> NDArray[np.float64]:
    if values.dtype == object:
        raise DataError(f"{source.name}: column '{name}' holds texts, a regression needs numbers; see data.target")
    _refuse_empty(values, name, source)
    return values


def _weights(config: Table, source: Source) -> Tensor | None:
    if config.weight is None:
        return None
    if config.weight not in source.columns:
        hint = nearest(config.weight, source.columns)
        raise DataError(f"{source.name}: data.weight: there is no column '{config.weight}'; {hint}")
    values = _reals(source.columns[config.weight], config.weight, source)
    if (values < 0).any():
        row = int((values < 0).argmax())
        raise DataError(f"{source.name}: row {row + 1}, column '{config.weight}': the weight {values[row]} is below 0")
    return torch.from_numpy(values.astype(np.float32))


def _rows(inputs: Tensor, targets: Tensor, weight: Tensor | None, index: Tensor) -> Stacked:
    return Stacked(inputs[index], targets[index], None if weight is None else weight[index])
