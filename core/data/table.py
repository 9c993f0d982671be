"""Tables: from a file's columns to inputs [N, F] and targets; all that is fitted is taken from the training rows.

Only the columns that are used are read and checked; all that is wrong with them is said in one message.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.config import Table
from core.data.examples import Data, Names, Stacked
from core.data.labels import class_labels, known_labels
from core.data.preprocess import Preprocess, TableFit, Trained, fit_table, problems_of, standardization
from core.data.sources import bundled
from core.data.sources.columns import fingerprint_of, open_table_file
from core.data.sources.files import bundled_name, find, nearest, sha256_of
from core.data.sources.frame import TEXTS, As, Column, Columns, Frame, Numeric, Problem, Sheet, Texts, texts_of
from core.data.sources.notation import Form, plain_numbers
from core.data.spec import Spec
from core.data.split import refuse_lonely, refuse_unseen, split_rows
from core.errors import DataError

Target = Literal["class", "real", "token"]
INDEXES = ("", "Unnamed: 0", "__index_level_0__")  # as pandas names the row numbers that it writes beside a table
SHOWN = 8  # problems that are told in one message
MANY_ROWS = 20  # of fewer, different whole numbers in each are no sign of an index


@dataclass(frozen=True)
class Source:
    """A table whose columns can be read. `target` and `classes` are known of bundled data; `name` is for messages."""

    frame: Frame
    name: str
    fingerprint: str
    target: str | None = None
    classes: tuple[str, ...] = ()


def load_table(config: Table, target: Target, seed: int, trained: Trained | None = None) -> Data:
    """Reads, splits, fits on the training rows and prepares all rows. DataError if anything is not as it must be."""
    source = _open(config)
    if trained:
        trained.require(source.fingerprint, config.path)
    name, left_out = _target_name(config, source), _indexes(config, source)
    features = _features(config, source, name, left_out)
    fitted = trained.preprocess.fitted if trained else None
    assert fitted is None or isinstance(fitted, TableFit)
    wanted: dict[str, As] = {n: TEXTS if n in config.categorical else None for n in features}
    wanted = {**(fitted.wanted if fitted else wanted), name: TEXTS if target == "class" else None}
    if config.weight is not None:
        wanted[config.weight] = None
    sheet = _read(source, wanted, config)
    inputs = {n: sheet.columns[n] for n in features if n in sheet.columns}
    fill = config.missing == "mean"
    cure = "mend such cells, or set data.missing=mean"
    _refuse((*sheet.problems, *problems_of(inputs, fill, cure)), source)
    classes: tuple[str, ...] = ()
    if target == "class":
        labels, classes = class_labels(_texts(sheet, name), name, source.name, source.classes)
        refuse_lonely(labels, classes, config.split, source.name)
        splits = split_rows(len(labels), config.split, seed, labels)
        refuse_unseen(splits, labels, classes, source.name)
        targets: Tensor = torch.from_numpy(labels)
    else:
        reals = _reals(sheet, name, source)
        splits = split_rows(len(reals), config.split, seed)
    if fitted is None:
        fitted = fit_table(config, {n: column[splits["train"]] for n, column in inputs.items()}, name)
        if target == "real":
            mean, std = standardization(reals.values[splits["train"]]) if config.normalize else (0.0, 1.0)
            fitted = replace(fitted, target_mean=mean, target_std=std, target_form=reals.form)
    if target == "real":
        targets = fitted.real_targets(reals.values)
    spec = Spec("table", (fitted.width,), len(classes) or 1, target, classes)
    prepared, weight = fitted.inputs(inputs), _weights(config, sheet, source)
    rows = {split: torch.from_numpy(index) for split, index in splits.items()}
    parts = {split: _rows(prepared, targets, weight, index) for split, index in rows.items()}
    if (learned := parts["train"].weight) is not None and not learned.any():
        raise DataError(
            f"{source.name}: data.weight: '{config.weight}' is 0 in every training row; name another column"
        )
    notes = (*source.frame.notes, *_told(left_out), *sheet.notes, *_suspects(inputs))
    return Data(
        Preprocess(spec, fitted), source.fingerprint, parts, seed, rows=rows, notes=notes, names=_names(config, source)
    )


def open_table(preprocess: Preprocess, config: Table, labeled: bool = True) -> Data:
    """All rows of another table as the split `test`; without targets if it does not have the target column.

    What a column is, the model says. `labeled` false leaves targets out: they may be empty, or of unknown classes.
    """
    source, spec, fitted = _open(config), preprocess.spec, preprocess.fitted
    assert isinstance(fitted, TableFit)
    if gone := [name for name in fitted.names if name not in source.frame.names]:
        what = ", ".join(f"'{name}'" for name in gone)
        are = "is" if len(gone) == 1 else "are"
        raise DataError(
            f"{source.name}: column{'s' if len(gone) > 1 else ''} {what} {are} missing; "
            f"{nearest(gone[0], source.frame.names)}"
        )
    labeled = labeled and fitted.target in source.frame.names
    wanted = fitted.wanted
    if labeled:
        wanted[fitted.target] = TEXTS if spec.target == "class" else fitted.target_form
    if config.weight in source.frame.names:
        wanted[config.weight] = None
    sheet = _read(source, wanted, config)
    inputs = {name: sheet.columns[name] for name in fitted.names if name in sheet.columns}
    cure = "mend such cells: the model was trained without empty ones"
    known = [
        problem for problem in problems_of(inputs, fitted.fill_missing, cure) if "different texts" not in problem.what
    ]
    _refuse((*sheet.problems, *known), source)
    targets = None
    if labeled and spec.target == "class":
        targets = torch.from_numpy(known_labels(_texts(sheet, fitted.target), fitted.target, spec.classes, source.name))
    elif labeled:
        targets = fitted.real_targets(_reals(sheet, fitted.target, source).values)
    prepared = fitted.inputs(inputs)
    weight = _weights(config, sheet, source) if config.weight in source.frame.names else None
    parts, rows = {"test": Stacked(prepared, targets, weight)}, {"test": torch.arange(len(prepared))}
    notes = (*source.frame.notes, *sheet.notes)
    return Data(preprocess, source.fingerprint, parts, rows=rows, notes=notes, names=_names(config, source))


def column_values(config: Table, data: Data, name: str) -> NDArray[Any]:
    """[N]: what a column holds for each training row of `data`, numbers or texts; it need not be an input.

    Raises DataError if there is no such column, a cell is empty, or the table is no longer the one of `data`.
    """
    source = _open(config)
    if source.fingerprint != data.fingerprint:
        raise DataError(f"{config.path}: has changed since it was loaded; load it again")
    if name not in source.frame.names:
        raise DataError(f"{source.name}: there is no column '{name}'; {nearest(name, source.frame.names)}")
    column = _texts(source.frame.read({name: TEXTS}), name)
    bad = column.bad_cell()
    if bad is not None:
        raise DataError(f"{source.name}: row {bad[0] + 1}, column '{name}': {bad[1]}; every row needs one")
    assert data.rows is not None
    distinct: NDArray[Any] | None = plain_numbers(column.distinct)
    if distinct is None:
        distinct = np.array(column.distinct, dtype=object)
    values: NDArray[Any] = distinct[column.places][data.rows["train"].numpy()]
    return values


# --- what is read --------------------------------------------------------------------------------------------------


def _open(config: Table) -> Source:
    name = bundled_name(config.path, bundled.TABLES)
    if name is None:
        path = find(config.path)
        frame = open_table_file(path, config.header, config.delimiter)
        return Source(frame, config.path, fingerprint_of(path))
    table = bundled.read_table(name)
    columns: dict[str, Column] = {column: Numeric(table.inputs[:, i]) for i, column in enumerate(table.columns)}
    columns["target"] = Numeric(table.targets)
    if table.classes:
        columns["target"] = Texts(table.classes, table.targets.astype(np.int64))

    def fetch(names: Sequence[str], texts: Iterable[str], digits: Iterable[str]) -> Columns:
        return {
            n: texts_of(c.values) if n in texts and isinstance(c := columns[n], Numeric) else columns[n] for n in names
        }

    return Source(Frame(tuple(columns), fetch), config.path, sha256_of(table.content), "target", table.classes)


def _read(source: Source, wanted: dict[str, As], config: Table) -> Sheet:
    sheet = source.frame.read(wanted, config.numbers)
    if not all(map(len, sheet.columns.values())):
        raise DataError(f"{source.name}: holds no rows")
    return sheet


def _names(config: Table, source: Source) -> Names | None:
    """What `id` calls the rows, as it stands in the file."""
    if config.id is None:
        return None
    if config.id not in source.frame.names:
        hint = f"{nearest(config.id, source.frame.names)}; data.id=null goes without"
        raise DataError(f"{source.name}: data.id: there is no column '{config.id}'; {hint}")
    column = _texts(source.frame.read({config.id: TEXTS}), config.id)
    return Names(config.id, [column.distinct[place] if place >= 0 else "" for place in column.places.tolist()])


def _indexes(config: Table, source: Source) -> list[str]:
    """Row numbers that pandas wrote, unless the config names them."""
    named = {config.target, config.weight, config.id, *config.drop, *(config.columns or ())}
    is_all = config.columns is None
    return [name for name in source.frame.names if is_all and name in INDEXES and name not in named]


def _target_name(config: Table, source: Source) -> str:
    others = [name for name in source.frame.names if name not in (config.weight, config.id, *config.drop, *INDEXES)]
    name = config.target or source.target or (others[-1] if others else "")
    if name not in source.frame.names or name in config.drop:
        hint = nearest(name, others)
        raise DataError(f"{source.name}: data.target: there is no column '{name}'; {hint}")
    return name


def _features(config: Table, source: Source, target: str, left_out: Sequence[str]) -> list[str]:
    for key in ("columns", "drop", "categorical"):
        for name in getattr(config, key) or ():
            if name not in source.frame.names:
                hint = nearest(name, source.frame.names)
                raise DataError(f"{source.name}: data.{key}: there is no column '{name}'; {hint}")
    if config.weight is not None and config.weight not in source.frame.names:
        hint = nearest(config.weight, source.frame.names)
        raise DataError(f"{source.name}: data.weight: there is no column '{config.weight}'; {hint}")
    if target in (config.columns or ()):
        raise DataError(f"{source.name}: data.columns: '{target}' is the target; a model must not see it as an input")
    others = {target, config.weight, config.id, *config.drop, *left_out}
    wanted = config.columns or [name for name in source.frame.names if name not in others]
    if not wanted:
        raise DataError(f"{source.name}: there is no column to predict '{target}' from")
    return list(wanted)


def _texts(sheet: Sheet, name: str) -> Texts:
    column = sheet.columns[name]
    assert isinstance(column, Texts)
    return column


def _reals(sheet: Sheet, name: str, source: Source) -> Numeric:
    column = sheet.columns[name]
    if isinstance(column, Texts):
        raise DataError(f"{source.name}: column '{name}' holds texts, a regression needs numbers; see data.target")
    bad = column.bad_cell()
    if bad is not None:
        raise DataError(f"{source.name}: row {bad[0] + 1}, column '{name}': {bad[1]}; every row needs its target")
    return column


def _weights(config: Table, sheet: Sheet, source: Source) -> Tensor | None:
    if config.weight is None:
        return None
    values = _reals(sheet, config.weight, source).values
    if (values < 0).any():
        row = int((values < 0).argmax())
        raise DataError(f"{source.name}: row {row + 1}, column '{config.weight}': the weight {values[row]} is below 0")
    return torch.from_numpy(values.astype(np.float32))


def _rows(inputs: Tensor, targets: Tensor, weight: Tensor | None, index: Tensor) -> Stacked:
    return Stacked(inputs[index], targets[index], None if weight is None else weight[index])


# --- what is said --------------------------------------------------------------------------------------------------


def _refuse(problems: Sequence[Problem], source: Source) -> None:
    """Raises DataError with all that is wrong, and with each thing to do about it once."""
    if not problems:
        return
    cures: dict[str, list[str]] = {}
    for problem in problems:
        cures.setdefault(problem.cure, []).append(problem.column)
    said = [problem.what for problem in problems[:SHOWN]]
    said += [f"and {len(problems) - SHOWN} more such columns"] if len(problems) > SHOWN else []
    said += [cure.replace("{}", ", ".join(dict.fromkeys(names))) for cure, names in cures.items() if cure]
    raise DataError(f"{source.name}: {'; '.join(said)}")


def _told(left_out: Sequence[str]) -> list[str]:
    return [
        f"column '{name}' is left out: row numbers as pandas writes them; data.columns takes it as an input"
        for name in left_out
    ]


def _suspects(columns: Columns) -> list[str]:
    """Columns that number the rows, as an index does: what a model learns of them holds for this file alone."""
    names = [name for name, column in columns.items() if isinstance(column, Numeric) and _numbers_rows(column)]
    if not names:
        return []
    who = ", ".join(f"'{name}'" for name in names[:SHOWN])
    hold = f"columns {who} hold" if len(names) > 1 else f"column {who} holds"
    out = f"leave it out with data.drop=[{', '.join(names[:SHOWN])}]"
    return [f"{hold} a different whole number in each row, as row numbers do; if it is an index, {out}"]


def _numbers_rows(column: Numeric) -> bool:
    values = column.values
    if column.form != Form() or len(values) < MANY_ROWS:
        return False
    for part in (values[:100], values):  # most columns show it in their first rows
        if not np.array_equal(part, np.floor(part)) or len(np.unique(part)) < len(part):
            return False
    return True
