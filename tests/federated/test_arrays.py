"""Arrays that are read fast are Flower's in every other respect."""

import io
from typing import Any

import flwr.app
import numpy as np
import pytest

from federated.flower.arrays import Array, copy_of


@pytest.mark.parametrize(
    "values",
    [
        np.arange(12.0).reshape(3, 4),
        np.float32(3.5),
        np.zeros((0, 2), np.int64),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(10)[::3],
        np.array([True, False]),
        np.array(["a", "bc"]),
        np.arange(4, dtype=">i4"),
    ],
    ids=str,
)
def test_an_array_is_read_as_flower_reads_it(values: Any) -> None:
    theirs = flwr.app.Array(np.asarray(values))
    ours = copy_of(theirs)
    read = ours.numpy()
    assert np.array_equal(read, theirs.numpy()) and read.dtype == theirs.numpy().dtype
    assert read.flags.writeable
    read[...] = read[::-1] if read.ndim else read
    assert ours.data == theirs.data


def test_equal_arrays_are_equal_whoever_made_them() -> None:
    theirs = flwr.app.Array(np.ones(3))
    assert copy_of(theirs) == theirs and theirs == copy_of(theirs) and copy_of(theirs) == copy_of(theirs)
    assert copy_of(theirs) != flwr.app.Array(np.zeros(3)) and copy_of(theirs) != 3


def test_an_array_deflates_as_flower_s_own() -> None:
    theirs = flwr.app.Array(np.ones(3))
    assert copy_of(theirs).object_id == theirs.object_id


@pytest.mark.parametrize("change", ["cut", "longer", "other shape", "other way of writing"])
def test_an_array_that_says_one_thing_and_holds_another_is_read_as_flower_reads_it(change: str) -> None:
    array = copy_of(flwr.app.Array(np.arange(6.0).reshape(2, 3)))
    vars(array).update(
        {
            "cut": {"data": array.data[:-3]},
            "longer": {"data": array.data + b"1234"},
            "other shape": {"shape": (3, 2)},
            "other way of writing": {"stype": "other"},
        }[change]
    )
    theirs = flwr.app.Array(array.dtype, array.shape, array.stype, array.data)
    outcomes = []
    for read in (array.numpy, theirs.numpy):
        try:
            outcomes.append(read().tolist())
        except (ValueError, TypeError) as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_an_array_of_objects_is_never_unpickled() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        Array("object", (1,), "numpy.ndarray", buffer.getvalue()).numpy()
