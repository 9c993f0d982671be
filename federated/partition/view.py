"""What a partition can go by: the labels of the training examples, or a natural id such as a writer or a document."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data import Data, DataConfig, Table, Text
from core.data.sources.contents import kind_of
from core.data.sources.files import find, nearest
from core.data.sources.records import ENDINGS as RECORDS
from core.data.sources.records import read_records
from core.data.split import Indices
from core.data.table import column_values
from core.data.text import window_documents
from core.errors import ConfigError, DataError

BINS = 10  # of real targets: their deciles stand for labels


def labels_of(data: Data, kind: str) -> Indices:
    """int64 [N]: the classes 0, 1, ... of the training examples, or of real targets the quantile bins (at most 10).

    Raises ConfigError for text, which has no labels; `kind` is who asks.
    """
    if data.spec.kind == "text":
        raise ConfigError(
            f"partition.kind: {kind} goes by labels, which text does not have; use column, quantity or iid"
        )
    targets: NDArray[Any] = data.splits["train"].targets.numpy()  # type: ignore[attr-defined]  # of all examples but windows of text
    if data.spec.target == "class":
        return targets
    values = targets.reshape(len(targets), -1)[:, 0]
    edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
    return np.searchsorted(edges, values, side="right")


def present_labels(data: Data, kind: str) -> tuple[Indices, int]:
    """`labels_of`, counted anew from 0 so that each has an example; and how many there are."""
    distinct, labels = np.unique(labels_of(data, kind), return_inverse=True)
    return labels, len(distinct)


def ids_of(data: Data, source: DataConfig, column: str | None) -> NDArray[Any]:
    """[N]: the value of a natural id for each training example, numbers or texts.

    Of a table, a column. Of text `document` (a file, a line of jsonl, a help topic; the same as None), `folder` (the
    top folder of a file, such as a package of Python's library) or a key of the jsonl's records. The id of a window of
    text is that of its middle token. Raises ConfigError for images and for an id that is not there, DataError where a
    row has none.
    """
    if isinstance(source, Table):
        if column is None:
            raise ConfigError("partition.column: name the column of the table whose values are the clients")
        return column_values(source, data, column)
    if isinstance(source, Text):
        return _text_ids(data, source, column or "document")
    raise ConfigError(
        "partition.kind: column goes by a table's column or a text's documents, which images do not have; use iid, "
        "dirichlet, labels, shards, quantity or feature"
    )


def _text_ids(data: Data, source: Text, column: str) -> NDArray[Any]:
    names = window_documents(source, data)
    if column == "folder":
        names = [name.split("/")[0] for name in names]
    elif column != "document":
        names = _record_values(source, names, column)
    return np.array(names, dtype=object)


def _record_values(source: Text, names: list[str], column: str) -> list[str]:
    """The values of a key of a json or jsonl file whose documents are called FILE:NUMBER."""
    known = ["document", "folder"]
    if kind_of(Path(source.path)) in RECORDS:
        records = dict(read_records(find(source.path)).numbered)
        known += {key: None for record in records.values() for key in record if key != "text"}
        if column in known:
            found = [(name, records[int(name.rpartition(":")[2])].get(column)) for name in names]
            bare = next((name for name, value in found if value is None), None)
            if bare is not None:
                raise DataError(f"{bare}: the key '{column}' is missing, which partition.column goes by; add it")
            return [str(value) for _, value in found]
    raise ConfigError(f"partition.column: there is no '{column}' in {source.path}; {nearest(column, known)}")
