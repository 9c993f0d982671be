"""Orders and replies survive the way through Flower's records, and nothing that a client sends raises."""

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federated.exchange import UPDATE, Order, Reply
from federated.flower.messages import (
    Answer,
    Fault,
    Malformed,
    order_record,
    read_order,
    read_reply,
    read_weights,
    reply_record,
    weights_record,
)
from federated.inspection import Expected, fault, shapes
from federated.transforms import Int8, TopK, TransformConfig
from federated.transforms.chain import decode, encode, sent
from tests.federated.frames import frame_of
from tests.federated.malformed import COUNT, EXPECTED, GOOD, MALFORMED, ROUND, RUN, good, malformed, written

FRAME = frame_of((4, 5), bias=3, statistics=2)


@pytest.fixture(autouse=True)
def _a_server_may_send(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def message(content: RecordDict | Error) -> Message:
    return Message(content, reply_to=Message(RecordDict(), 17, "train"))  # type: ignore[call-overload,no-any-return]


def carried(record: Any) -> Any:
    """A record after the way that Flower's connections take it: as bytes, child by child."""
    children = {name: carried(child) for name, child in (record.children or {}).items()}
    return type(record).inflate(record.deflate(), children)


# --- replies --------------------------------------------------------------------------------------------------------


def answer_of(content: RecordDict, expected: Expected = EXPECTED) -> Answer:
    answer = read_reply(message(content), expected, client=3)
    assert isinstance(answer, Answer), answer
    return answer


def test_a_reply_comes_back_as_it_was() -> None:
    answer = answer_of(carried(good()))
    assert (answer.round, answer.run_id, answer.metrics) == (ROUND, RUN, {"loss": 0.5})
    assert (answer.reply.client, answer.reply.weight) == (3, 12.0)
    assert answer.reply.payload.keys() == GOOD.payload.keys()
    assert all(torch.equal(answer.reply.payload[name], GOOD.payload[name]) for name in GOOD.payload)
    answer.reply.payload[UPDATE].add_(1.0)  # it is the server's own
    assert torch.equal(answer_of(good()).reply.payload[UPDATE], GOOD.payload[UPDATE])


def test_arrays_are_what_flower_itself_writes_and_reads() -> None:
    content = good()
    for name, tensor in GOOD.payload.items():
        array = content["arrays"][name]
        assert array == Array(tensor.numpy())
        assert np.array_equal(array.numpy(), tensor.numpy())
    theirs = RecordDict({"arrays": ArrayRecord(GOOD.payload), "metrics": content["metrics"]})
    assert torch.equal(answer_of(theirs).reply.payload[UPDATE], GOOD.payload[UPDATE])


def test_the_order_of_names_changes_nothing() -> None:
    content = good()
    turned = RecordDict(
        {
            "metrics": MetricRecord(dict(reversed(content["metrics"].items()))),
            "arrays": ArrayRecord(dict(reversed(content["arrays"].items()))),
        }
    )
    answer = answer_of(turned)
    assert list(answer.reply.payload) == list(GOOD.payload)
    assert torch.equal(answer.reply.payload[UPDATE], GOOD.payload[UPDATE])


@pytest.mark.parametrize("chain", [[], [Int8()], [TopK(share=0.2)], [TopK(share=0.2), Int8()]], ids=str)
def test_replies_travel_through_every_compression(chain: list[TransformConfig]) -> None:
    frame = frame_of((4, 5), bias=3, statistics=2)
    update = torch.linspace(-1, 1, frame.size)
    reply = Reply(3, 2.0, {UPDATE: update, "steps": torch.tensor(4.0)})
    coded, _ = encode(chain, reply, {}, frame, 0)
    answer = answer_of(reply_record(coded, 1, 2, {}), Expected(sent(chain, reply.payload, frame)))
    assert {name: t.tolist() for name, t in answer.reply.payload.items()} == {
        name: t.tolist() for name, t in coded.payload.items()
    }
    assert fault(decode(chain, answer.reply, frame), Expected(shapes(reply.payload))) is None


def test_the_corpus_is_large() -> None:
    assert len(MALFORMED) >= 60


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_reply_is_a_fault_and_never_an_exception(name: str) -> None:
    found = read_reply(message(malformed(name)), EXPECTED, client=3)
    assert isinstance(found, Fault), found
    assert MALFORMED[name][1] in found.text and found.client == 3
    assert len(found.text) < 160 and found.text.isprintable()


def test_a_header_of_80_terabytes_allocates_nothing() -> None:
    for name in ("a header that claims 80 TB", "a header alone that claims 80 TB", "a shape that claims 80 TB"):
        spoiled = message(malformed(name))
        tracemalloc.start()
        assert isinstance(read_reply(spoiled, EXPECTED), Fault)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20


def test_an_error_in_the_place_of_a_reply_is_told_by_its_last_line() -> None:
    error = Error(2, "Traceback (most recent call last):\n  File x\nValueError: no \x1b[31mdata\n")
    assert read_reply(message(error), EXPECTED, 8) == Fault("client failed with error 2: ValueError: no ?[31mdata", 8)
    assert read_reply(message(Error(3)), EXPECTED) == Fault("client failed with error 3: no reason given")


def test_a_message_with_neither_content_nor_error_is_a_fault() -> None:
    empty = message(good())
    empty.__dict__["_content"] = None
    assert read_reply(empty, EXPECTED) == Fault("message has neither content nor error")


def test_where_the_server_does_not_know_the_client_it_takes_its_word() -> None:
    answer = read_reply(message(malformed("another client's name")), EXPECTED)
    assert isinstance(answer, Answer) and answer.reply.client == 4


ARRAYS = st.builds(
    lambda dtype, shape, stype, data: Array(dtype, tuple(shape), stype, data),
    st.sampled_from(["float32", "float64", "<f4", "object", "", "V4"]),
    st.lists(st.integers(-2, 400), max_size=3),
    st.sampled_from(["numpy.ndarray", "", "pickle"]),
    st.one_of(
        st.binary(max_size=300),
        st.just(written(np.zeros(COUNT, np.float32))),
        st.builds(lambda shape: written(np.zeros(COUNT, np.float32), tuple(shape)), st.lists(st.integers(-5, 2**62))),
    ),
)
NUMBERS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(), st.lists(st.floats(), max_size=2))
NAMES = st.sampled_from([UPDATE, "steps", "num-examples", "client", "round", "run", "loss", "", "\n"])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, ARRAYS, max_size=3), st.dictionaries(NAMES, NUMBERS, max_size=6), st.booleans())
def test_nothing_that_a_client_can_send_raises(
    arrays: dict[str, Array], metrics: dict[str, Any], begins_well: bool
) -> None:
    content = good() if begins_well else RecordDict({"arrays": ArrayRecord(), "metrics": MetricRecord()})
    content["arrays"].update(arrays)
    content["metrics"].update(metrics)
    found = read_reply(message(content), EXPECTED)
    if isinstance(found, Answer):
        assert fault(found.reply, EXPECTED) is None
    else:
        assert found.text and found.text.isprintable() and len(found.text) < 200


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 127), st.integers(0, 255))
def test_one_wrong_byte_in_a_header_is_seen(place: int, byte: int) -> None:
    content = good()
    array = content["arrays"][UPDATE]
    was = array.data
    array.data = was[:place] + bytes([byte]) + was[place + 1 :]
    assert isinstance(read_reply(message(content), EXPECTED), Fault) == (array.data != was)


# --- orders ---------------------------------------------------------------------------------------------------------

WEIGHTS = torch.linspace(-2, 2, FRAME.size)
ORDER = Order(7, WEIGHTS, {"control": torch.ones(FRAME.trainable), "scale": torch.tensor(2.0), "all": WEIGHTS + 1})


def test_an_order_comes_back_as_it_was() -> None:
    content = order_record(ORDER, FRAME, RUN, wants="weights", config={"lr": 0.1, "name": "x", "last": True})
    found = read_order(carried(content), FRAME)
    assert (found.run_id, found.wants, found.config) == (RUN, "weights", {"lr": 0.1, "name": "x", "last": True})
    assert found.order.round == 7 and torch.equal(found.order.weights, WEIGHTS)
    assert found.order.extra.keys() == ORDER.extra.keys()
    assert all(torch.equal(found.order.extra[name], ORDER.extra[name]) for name in ORDER.extra)


def test_weights_lie_in_an_order_by_the_names_of_the_network() -> None:
    arrays = order_record(ORDER, FRAME, RUN)["arrays"]
    assert {name: array.shape for name, array in arrays.items()} == {"weight": (4, 5), "bias": (3,), "mean": (2,)}
    assert np.array_equal(arrays["weight"].numpy(), WEIGHTS[:20].view(4, 5).numpy())
    turned = ArrayRecord(dict(reversed(arrays.items())))
    assert torch.equal(read_weights(turned, FRAME), WEIGHTS)


def test_an_order_without_extras_is_one_that_flower_itself_could_send() -> None:
    content = order_record(Order(1, WEIGHTS), FRAME, RUN)
    assert set(content) == {"arrays", "config"}
    theirs = RecordDict({"arrays": weights_record(FRAME.named(WEIGHTS)), "config": ConfigRecord({"server-round": 4})})
    found = read_order(theirs, FRAME)
    assert (found.order.round, found.order.extra, found.run_id, found.wants) == (4, {}, 0, "update")


@pytest.mark.parametrize(
    "spoil, text",
    [
        (lambda c: c.pop("arrays"), "order: record arrays is missing"),
        (lambda c: c.pop("config"), "order: record config is missing"),
        (lambda c: c["arrays"].pop("bias"), "order: bias is missing"),
        (
            lambda c: c["arrays"].update({"bias": Array(np.zeros(4, np.float32))}),
            r"bias has shape \[4\], expected \[3\]",
        ),
        (lambda c: c["extra"].update({"x": Array(np.zeros(4, np.float32))}), r"'x' has shape \[4\]"),
        (lambda c: c["extra"].update({"x": Array(np.zeros(23, np.float64))}), "'x' is 'float64'"),
        (lambda c: c.update({"extra": MetricRecord()}), "record extra is a MetricRecord"),
        (lambda c: c["config"].update({"server-round": "7"}), "round and run must be whole"),
        (lambda c: c["config"].update({"run": True}), "round and run must be whole"),
        (lambda c: c["config"].update({"reply": "everything"}), "reply update or weights"),
    ],
)
def test_an_order_of_another_form_is_one_line(spoil: Any, text: str) -> None:
    content = order_record(ORDER, FRAME, RUN)
    spoil(content)
    with pytest.raises(Malformed, match=text):
        read_order(content, FRAME)


def test_flowers_own_averaging_takes_replies_with_weights() -> None:
    from flwr.serverapp.strategy import FedAvg

    vectors = [torch.linspace(0, 1, FRAME.size), torch.linspace(5, 9, FRAME.size)]
    replies = [
        message(reply_record(Reply(i, weight, FRAME.named(v)), 1, RUN, {"loss": float(i)}))
        for i, (v, weight) in enumerate(zip(vectors, (1.0, 3.0), strict=True))
    ]
    arrays, metrics = FedAvg().aggregate_train(1, replies)
    assert arrays is not None and metrics is not None
    expected = (vectors[0] + 3 * vectors[1]) / 4
    assert torch.allclose(read_weights(arrays, FRAME), expected)
    assert metrics["loss"] == pytest.approx(0.75)


def test_training_code_needs_no_flwr() -> None:
    code = """
import sys
sys.modules["flwr"] = None
import federated.transforms.chain, federated.inspection
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
