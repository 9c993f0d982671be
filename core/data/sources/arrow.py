"""What pyarrow reads, as columns of numbers and texts."""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.sources.frame import Column, Numeric, Texts, written
from core.data.sources.notation import Form, Odd


def columns_of(table: Any, texts: Collection[str]) -> dict[str, Column | Odd]:
    """The columns of a pyarrow table, some as texts. Odd: a type that is neither numbers nor texts."""
    columns = dict[str, Column | Odd]()
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = _kind(column)
        if _has_no_cells(kind):
            columns[name] = Odd("", f"column '{name}' holds {kind}, not numbers or texts")
            continue
        columns[name] = _texts(column) if name in texts or _is_text(kind) else _numbers(column, kind)
    return columns


def _kind(column: Any) -> Any:
    import pyarrow as pa

    return column.type.value_type if pa.types.is_dictionary(column.type) else column.type


def _has_no_cells(kind: Any) -> bool:
    import pyarrow as pa

    return any(
        check(kind)
        for check in (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    )


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _texts(column: Any) -> Texts:
    """The texts that Python writes for the values."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    if not column.num_chunks:
        return Texts((), np.empty(0, np.int64))
    whole = column.unify_dictionaries().combine_chunks()
    places = np.asarray(whole.indices.cast(pa.int64()).fill_null(-1), np.int64)
    return Texts.named([written(value) for value in whole.dictionary.to_pylist()], places)


def _numbers(column: Any, kind: Any) -> Numeric:
    import pyarrow as pa

    if column.type != kind:
        column = column.cast(kind)
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        days = column.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        return Numeric(_floats(days) / 86400e6, Form("date"))
    if pa.types.is_time(kind):
        return Numeric(_floats(column.cast(pa.time64("us"), safe=False).cast(pa.int64())) / 1e6, Form("time"))
    if pa.types.is_boolean(kind) or pa.types.is_duration(kind):
        column = column.cast(pa.int8() if pa.types.is_boolean(kind) else pa.int64())
    return Numeric(_floats(column))


def _floats(column: Any) -> NDArray[np.float64]:
    """Integers past 2^53 are rounded, as in any float64."""
    import pyarrow as pa

    floats = column.cast(pa.float64(), safe=False)
    return np.asarray(floats.fill_null(float("nan")).to_numpy(), dtype=np.float64)
