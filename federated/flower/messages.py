"""Orders and replies as Flower's records, and back; what comes from outside is checked before it is decoded.

An order is `{"arrays": the weights by the network's names, "extra": the strategy's vectors, "config": numbers}`, as
Flower's own strategies send it, and a reply is `{"arrays": the payload, "metrics": numbers}`, as they aggregate it.
Tensors lie in them as the bytes of `np.save`. Their header follows from the form that is expected, and is compared with
it: a header from outside is never parsed, nothing is allocated because of it, and no pickle can be in it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE, ErrorCode
from torch import Tensor

from core.errors import DataError
from core.population.frame import Frame
from federated.exchange import Order, Reply, Vectors
from federated.flower.arrays import STYPE, header_of
from federated.inspection import LARGEST_WEIGHT, Expected, Shapes, fault, form, names_fault, short

ARRAYS, EXTRA, CONFIG, METRICS = "arrays", "extra", "config", "metrics"  # records
WEIGHT, ROUND = "num-examples", "server-round"  # Flower's names for these numbers
SILENCE_S = HEARTBEAT_DEFAULT_INTERVAL * HEARTBEAT_PATIENCE  # after which the SuperLink gives a node up
DIED = f"its SuperNode has died or cannot be reached: no sign of life for {SILENCE_S} s"
MOST_METRICS = 64  # a client's numbers are kept for the whole run
Config = dict[str, str | int | float | bool]

_RAISED = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>:<'(.*)'>")  # how Flower writes an exception of a ClientApp


class Malformed(DataError):
    """A message that cannot be what the other side sends; the text says in a few words why."""


@dataclass(frozen=True)
class Instruction:
    """What a client reads: the order, the run that it belongs to, and the settings beside it.

    wants: what the client is to send: `update`, which is the strategy's payload, or `weights`, all numbers by the
    network's names, which Flower's own strategies can average.
    """

    order: Order
    run_id: int
    wants: str = "update"
    config: Config = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a server reads: the reply as it was sent, the round and run that it says it is of, and its other numbers."""

    reply: Reply
    round: int
    run_id: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Fault:
    """Why a reply does not count, in a few words; client: whose it is, if the server knows."""

    text: str
    client: int | None = None


def order_record(
    order: Order, frame: Frame, run_id: int, wants: str = "update", config: Config | None = None
) -> RecordDict:
    """The content of the messages of a round: one for all clients, so that it can be shared."""
    numbers: Config = (config or {}) | {ROUND: order.round, "run": run_id, "reply": wants}
    records: dict[str, ArrayRecord | ConfigRecord | MetricRecord] = {
        ARRAYS: weights_record(frame.named(order.weights)),
        CONFIG: ConfigRecord(dict(numbers)),
    }
    if order.extra:
        records[EXTRA] = weights_record(order.extra)
    return RecordDict(records)


def read_order(content: RecordDict, frame: Frame) -> Instruction:
    """What `order_record` made, or an order of Flower's own strategies, which has neither run nor extra vectors.

    Raises Malformed (a DataError) `order: ...` if it is not of this frame's model.
    """
    try:
        config = dict(_record(content, CONFIG, ConfigRecord))
        number, run_id, wants = config.pop(ROUND, 0), config.pop("run", 0), config.pop("reply", "update")
        if not _is_whole(number) or not _is_whole(run_id) or wants not in ("update", "weights"):
            raise Malformed("round and run must be whole numbers, and reply update or weights")
        extra: Vectors = {}
        if EXTRA in content:
            record = _record(content, EXTRA, ArrayRecord)
            extra = {name: _extra(short(name), array, frame) for name, array in record.items()}
        weights = read_weights(_record(content, ARRAYS, ArrayRecord), frame)
    except Malformed as error:
        raise Malformed(f"order: {error}") from error
    return Instruction(Order(number, weights, extra), run_id, str(wants), config)


def reply_record(reply: Reply, round: int, run_id: int, metrics: Mapping[str, float]) -> RecordDict:
    """The content of a reply. metrics: further numbers, such as loss and steps.

    For `wants: weights`, the payload is `frame.named(weights)`. Flower averages the metrics too, with the same weight.
    """
    numbers: dict[str, Any] = {WEIGHT: reply.weight, "client": reply.client, "round": round, "run": run_id}
    return RecordDict({ARRAYS: weights_record(reply.payload), METRICS: MetricRecord(dict(metrics) | numbers)})


def read_reply(message: Message, expected: Expected, client: int | None = None) -> Answer | Fault:
    """What a client sent, if it has the form expected of what is sent, and says it is of this client; else the fault.

    Never raises, whatever the message holds. A reply that is well formed may still be late, or wrong where its
    transforms are undone: see `federated.inspection.Ledger`, `federated.transforms.chain.decode`.
    """
    if message.has_error():
        return Fault(reason(message.error), client)
    if not message.has_content():
        return Fault("message has neither content nor error", client)
    try:
        answer = _answer(message.content, expected)
    except Malformed as error:
        return Fault(str(error), client)
    if client is not None and answer.reply.client != client:
        return Fault(f"reply says it is of client {answer.reply.client}", client)
    text = fault(answer.reply, expected)
    return Fault(text, client) if text else answer


def said_of_work(metrics: Mapping[str, float]) -> tuple[float, int, float]:
    """What a client says of its training: mean loss, examples (0 if it says nothing sensible), norm of its update."""
    examples = metrics.get("examples", 0.0)
    whole = int(examples) if 0 <= examples <= LARGEST_WEIGHT else 0
    return metrics.get("loss", math.nan), whole, metrics.get("norm", math.nan)


def weights_record(named: Mapping[str, Tensor]) -> ArrayRecord:
    """Named tensors as Flower's record."""
    return ArrayRecord({name: _array(tensor) for name, tensor in named.items()})


def read_weights(record: ArrayRecord, frame: Frame) -> Tensor:
    """The vector [D] of a record with all numbers of the model by the network's names. Raises Malformed."""
    views = frame.named(torch.empty(frame.size))
    wanted: Shapes = {name: (tuple(view.shape), torch.float32) for name, view in views.items()}
    return frame.joined(read_tensors(record, wanted))


def _answer(content: RecordDict, expected: Expected) -> Answer:
    if text := names_fault(content, {ARRAYS: None, METRICS: None}):
        raise Malformed(f"record {text}")
    numbers = _numbers(_record(content, METRICS, MetricRecord))
    client, number, run_id = (_whole(numbers, name) for name in ("client", "round", "run"))
    weight = float(numbers.pop(WEIGHT))
    payload = read_tensors(_record(content, ARRAYS, ArrayRecord), expected.vectors)
    metrics = {name: float(value) for name, value in numbers.items()}
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Malformed(f"metric {short(name)} is {value}")
    return Answer(Reply(client, weight, payload), number, run_id, metrics)


def _record(content: RecordDict, name: str, kind: type) -> Any:
    record = content.get(name)
    if not isinstance(record, kind):
        raise Malformed(f"record {name} is {'missing' if record is None else f'a {type(record).__name__}'}")
    return record


def _numbers(record: MetricRecord) -> dict[str, int | float]:
    """The metrics as single numbers, with those that every reply has."""
    if len(record) > MOST_METRICS:
        raise Malformed(f"metrics has {len(record)} entries, at most {MOST_METRICS}")
    for name in (WEIGHT, "client", "round", "run"):
        if name not in record:
            raise Malformed(f"metric {name} is missing")
    for name, value in record.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (isinstance(value, int) and value.bit_length() > 64):
            raise Malformed(f"metric {short(name)} is {short(value)}, expected a number")
    return cast("dict[str, int | float]", dict(record.items()))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _whole(numbers: dict[str, int | float], name: str) -> int:
    value = numbers.pop(name)
    if not _is_whole(value):
        raise Malformed(f"metric {name} is {short(value)}, expected a whole number of 0 or more")
    return int(value)


def read_tensors(record: ArrayRecord, wanted: Shapes) -> dict[str, Tensor]:
    """The tensors by name, in the order that is wanted, whatever the record's. Raises Malformed."""
    if text := names_fault(record, wanted):
        raise Malformed(text)
    return {name: _tensor(name, record[name], shape, dtype) for name, (shape, dtype) in wanted.items()}


def _tensor(name: str, array: Array, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of this form, or Malformed."""
    kind, what = _numpy(dtype), form(shape, dtype)
    if array.stype != STYPE:
        raise Malformed(f"{name} is written as {short(array.stype)}, expected {STYPE}")
    if array.dtype != str(kind):
        raise Malformed(f"{name} is {short(array.dtype)}, expected {kind}")
    if array.shape != shape:
        raise Malformed(f"{name} has shape {short(array.shape)}, expected {list(shape)}")
    header = header_of(shape, kind)
    size = len(header) + math.prod(shape) * kind.itemsize
    if len(array.data) != size:
        raise Malformed(f"{name} has {len(array.data)} bytes, expected {size} for {what}")
    if not array.data.startswith(header):
        raise Malformed(f"{name} has a header that is not that of {what}")
    flat = np.frombuffer(array.data, kind, offset=len(header))
    return torch.from_numpy(flat.copy()).view(shape)


def _extra(name: str, array: Array, frame: Frame) -> Tensor:
    """A strategy's vector: a single number, or as long as the model or its trainable part."""
    if array.shape not in ((), (frame.trainable,), (frame.size,)):
        raise Malformed(f"{name} has shape {short(array.shape)}, expected [], [{frame.trainable}] or [{frame.size}]")
    return _tensor(name, array, array.shape, torch.float32)


def _array(tensor: Tensor) -> Array:
    values = tensor.detach().cpu().contiguous().numpy()
    return Array(str(values.dtype), values.shape, STYPE, header_of(values.shape, values.dtype) + values.tobytes())


def _numpy(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype


def reason(error: Error) -> str:
    """The last line of what went wrong at the client: of a traceback, the error itself."""
    if error.code == ErrorCode.NODE_UNAVAILABLE:
        return DIED
    last = (str(error.reason or "").strip().splitlines() or ["no reason given"])[-1]
    if raised := _RAISED.fullmatch(last):
        last = f"{raised[1]}: {raised[2]}"
    printable = "".join(character if character.isprintable() else "?" for character in last[:200])
    return f"client failed with error {short(error.code)}: {printable}"
