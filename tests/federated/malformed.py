"""Malformed replies: each spoils the content of a good one, and says what the server must tell of it.

for name in MALFORMED: content = malformed(name)
"""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from federated.exchange import UPDATE, Reply
from federated.flower.messages import reply_record
from federated.inspection import Expected, shapes

ROUND, RUN = 5, 2**63 + 11  # Flower's run ids use all 64 bits
COUNT = 300
SIZE = 128 + 4 * COUNT  # of the update's bytes: a header of 128
GOOD = Reply(3, 12.0, {UPDATE: torch.linspace(-1, 1, COUNT), "steps": torch.tensor(4.0)})
EXPECTED = Expected(shapes(GOOD.payload), max_norm=100.0, max_weight=1000.0)

Spoil = Callable[[RecordDict], Any]


def good() -> RecordDict:
    """The content that every case begins with."""
    return reply_record(GOOD, ROUND, RUN, {"loss": 0.5})


def malformed(name: str) -> RecordDict:
    """The content of a case."""
    content = good()
    MALFORMED[name][0](content)
    return content


def written(values: Any, shape: tuple[int, ...] | None = None) -> bytes:
    """What np.save writes, with another shape in the header if one is given."""
    buffer = io.BytesIO()
    values = np.asarray(values)
    described = {"descr": values.dtype.str, "fortran_order": False, "shape": values.shape if shape is None else shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue() + values.tobytes()


def _array(values: Any) -> Spoil:
    """The update is another array, and says so."""
    return lambda content: content["arrays"].__setitem__(UPDATE, Array(np.asarray(values)))


def _field(**fields: Any) -> Spoil:
    """Fields of the update's array are others than its data says, or its data is."""

    def spoil(content: RecordDict) -> None:
        was = content["arrays"][UPDATE]
        for name, value in fields.items():
            setattr(was, name, value)

    return spoil


def _data(change: Callable[[bytes], bytes]) -> Spoil:
    return lambda content: _field(data=change(content["arrays"][UPDATE].data))(content)


def _metric(name: str, value: Any) -> Spoil:
    """A metric has another value, also one that Flower's record itself would not take."""
    return lambda content: content["metrics"].__dict__["_data"].__setitem__(name, value)


def _without(record: str, name: str) -> Spoil:
    return lambda content: content[record].pop(name)


def _renamed(content: RecordDict) -> None:
    content["arrays"]["weights"] = content["arrays"].pop(UPDATE)


def _swapped(content: RecordDict) -> None:
    arrays = content["arrays"]
    arrays[UPDATE], arrays["steps"] = arrays["steps"], arrays[UPDATE]


def _at(place: int, value: float) -> Spoil:
    update = GOOD.payload[UPDATE].numpy().copy()
    update[place] = value
    return _array(update)


ZEROS = np.zeros(COUNT, np.float32)
HUGE = (20 * 10**12,)  # float32 of this shape would be 80 TB

# name: (what spoils the content, a part of what is told)
MALFORMED: dict[str, tuple[Spoil, str]] = {
    # records
    "nothing at all": (lambda c: c.clear(), "record arrays is missing"),
    "no arrays": (lambda c: c.pop("arrays"), "record arrays is missing"),
    "no metrics": (lambda c: c.pop("metrics"), "record metrics is missing"),
    "empty arrays": (lambda c: c["arrays"].clear(), "update is missing"),
    "empty metrics": (lambda c: c["metrics"].clear(), "metric num-examples is missing"),
    "a second record of arrays": (lambda c: c.update({"more": ArrayRecord()}), "record 'more' is not expected"),
    "a config beside": (lambda c: c.update({"config": ConfigRecord()}), "record 'config' is not expected"),
    "arrays where metrics belong": (lambda c: c.update({"metrics": ArrayRecord()}), "record metrics is a ArrayRecord"),
    "metrics where arrays belong": (lambda c: c.update({"arrays": MetricRecord()}), "record arrays is a MetricRecord"),
    "metrics as a config": (
        lambda c: c.update({"metrics": ConfigRecord({"num-examples": "12"})}), "record metrics is a ConfigRecord"
    ),
    # names
    "an array is missing": (_without("arrays", "steps"), "steps is missing"),
    "an array too many": (lambda c: c["arrays"].update({"x": Array(ZEROS)}), "'x' is not expected"),
    "an array is renamed": (_renamed, "update is missing"),
    "a name that moves the cursor": (lambda c: c["arrays"].update({"\x1b[2J": Array(ZEROS)}), r"'\x1b[2J' is not"),
    "a name of a megabyte": (lambda c: c["arrays"].update({"x" * 2**20: Array(ZEROS)}), "xxx'... is not expected"),
    "arrays have each other's names": (_swapped, "update has shape [], expected [300]"),
    # shapes
    "a shape that would be broadcast": (_array(np.ones(1, np.float32)), "update has shape [1], expected [300]"),
    "a number in the place of a vector": (_array(np.float32(1)), "update has shape [], expected [300]"),
    "a matrix of as many numbers": (_array(ZEROS.reshape(1, -1)), "update has shape [1, 300], expected [300]"),
    "no numbers": (_array(np.zeros(0, np.float32)), "update has shape [0], expected [300]"),
    "one number too many": (_array(np.zeros(COUNT + 1, np.float32)), "update has shape [301], expected [300]"),
    "a shape below zero": (_field(shape=(-300,)), "update has shape [-300], expected [300]"),
    "a shape of a thousand axes": (_field(shape=(1,) * 1000), "update has shape [1, 1, 1, 1, 1, 1, 1, 1, ...]"),
    "a shape that claims 80 TB": (_field(shape=HUGE), "update has shape [20000000000000], expected [300]"),
    # types
    "float64": (_array(ZEROS.astype(np.float64)), "update is 'float64', expected float32"),
    "float16": (_array(ZEROS.astype(np.float16)), "update is 'float16', expected float32"),
    "int64": (_array(ZEROS.astype(np.int64)), "update is 'int64', expected float32"),
    "bool": (_array(ZEROS.astype(bool)), "update is 'bool', expected float32"),
    "complex": (_array(ZEROS.astype(np.complex64)), "update is 'complex64', expected float32"),
    "text": (_array(np.array(["a"] * COUNT)), "update is '<U1', expected float32"),
    "big-endian": (_array(ZEROS.astype(">f4")), "update is '>f4', expected float32"),
    "bfloat16": (_field(dtype="bfloat16", data=bytes(2 * COUNT)), "update is 'bfloat16', expected float32"),
    "objects": (_field(dtype="object"), "update is 'object', expected float32"),
    "a type that does not exist": (_field(dtype="float33"), "update is 'float33', expected float32"),
    "another way of writing": (_field(stype="torch.save"), "update is written as 'torch.save', expected numpy.ndarray"),
    # bytes
    "no bytes": (_field(data=b""), f"update has 0 bytes, expected {SIZE} for float32 [300]"),
    "numbers without a header": (_field(data=ZEROS.tobytes()), f"update has 1200 bytes, expected {SIZE}"),
    "a truncated array": (_data(lambda data: data[:-4]), f"update has {SIZE - 4} bytes"),
    "bytes after the array": (_data(lambda data: data + b"more"), f"update has {SIZE + 4} bytes"),
    "a header alone that claims 80 TB": (
        _field(data=written(ZEROS[:0], HUGE)), f"update has 128 bytes, expected {SIZE} for float32 [300]"
    ),
    "a header that claims 80 TB": (_field(data=written(ZEROS, HUGE)), "a header that is not that of float32 [300]"),
    "a header of objects": (
        _data(lambda data: data.replace(b"'<f4'", b"'|O' ")), "a header that is not that of float32 [300]"
    ),
    "a header of complex numbers": (
        _field(data=written(np.zeros(COUNT // 2, np.complex64))), "a header that is not that of float32 [300]"
    ),
    "a header in another order": (
        _data(lambda data: data.replace(b"False", b"True ")), "a header that is not that of float32 [300]"
    ),
    "a header that is no Python": (
        _data(lambda data: data[:10] + b"(" * 118 + data[128:]), "a header that is not that of float32 [300]"
    ),
    "a pickle": (
        _data(lambda data: (b"\x80\x04\x95cos\nsystem\n" + data)[: len(data)]), "a header that is not that of float32"
    ),
    "a zip archive": (_data(lambda data: (b"PK\x03\x04" + data)[: len(data)]), "a header that is not that of float32"),
    "another version of the format": (_data(lambda data: data[:6] + b"\x03" + data[7:]), "a header that is not"),
    "random bytes": (
        _field(data=np.random.default_rng(0).bytes(SIZE)), "a header that is not that of float32 [300]"
    ),
    # numbers
    "NaN": (_at(7, math.nan), "update is not finite at 1 of 300"),
    "infinity": (_at(7, math.inf), "update is not finite at 1 of 300"),
    "nothing but NaN": (_array(np.full(COUNT, math.nan, np.float32)), "update is not finite at 300 of 300"),
    "a finite absurdity": (_at(7, 1e30), "update has norm 1e+30, above 100"),
    "a single number that is not finite": (
        lambda c: c["arrays"].update({"steps": Array(np.array(math.nan, np.float32))}), "steps is not finite at 1 of 1"
    ),
    # metrics
    "no weight": (_without("metrics", "num-examples"), "metric num-examples is missing"),
    "a renamed weight": (
        lambda c: c["metrics"].update({"num_examples": c["metrics"].pop("num-examples")}), "num-examples is missing"
    ),
    "a weight of 0": (_metric("num-examples", 0), "weight 0.0 is not above 0"),
    "a weight below 0": (_metric("num-examples", -2), "weight -2.0 is not above 0"),
    "a weight that is NaN": (_metric("num-examples", math.nan), "weight nan is not above 0"),
    "an infinite weight": (_metric("num-examples", math.inf), "weight inf is above 1000"),
    "a weight above the cap": (_metric("num-examples", 10**15), "weight 1000000000000000.0 is above 1000"),
    "a weight of 5000 digits": (_metric("num-examples", 10**5000), "metric 'num-examples' is an integer of 16610 bits"),
    "a list of weights": (_metric("num-examples", [12.0]), "metric 'num-examples' is [12.0], expected a number"),
    "a weight that is true": (_metric("num-examples", True), "metric 'num-examples' is True, expected a number"),
    "a weight as text": (_metric("num-examples", "12"), "metric 'num-examples' is '12', expected a number"),
    "a weight that is None": (_metric("num-examples", None), "metric 'num-examples' is NoneType, expected a number"),
    "no client": (_without("metrics", "client"), "metric client is missing"),
    "no round": (_without("metrics", "round"), "metric round is missing"),
    "no run": (_without("metrics", "run"), "metric run is missing"),
    "half a round": (_metric("round", 4.5), "metric round is 4.5, expected a whole number"),
    "a round below 0": (_metric("round", -1), "metric round is -1, expected a whole number"),
    "a client that is NaN": (_metric("client", math.nan), "metric client is nan, expected a whole number"),
    "a loss that is NaN": (_metric("loss", math.nan), "metric 'loss' is nan"),
    "a loss as text": (_metric("loss", "low"), "metric 'loss' is 'low', expected a number"),
    "losses": (_metric("loss", [0.5, 0.4]), "metric 'loss' is [0.5, 0.4], expected a number"),
    "a thousand metrics": (
        lambda c: c["metrics"].update({f"m{i}": 0.0 for i in range(1000)}), "metrics has 1005 entries, at most 64"
    ),
    "another client's name": (_metric("client", 4), "reply says it is of client 4"),
}  # fmt: skip
