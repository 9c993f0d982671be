"""The engine over Flower's own Grid: one message for each client, and what its ClientApp answers.

What a worker of a pool does for its chunk the server does here for each reply, in the same order, so that the sums are
the same. Only a node can make a difference: a client whose node does not answer, in time or at all, does not count.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid

from core.errors import WorkerError
from federated.engine import Chunks
from federated.exchange import Order
from federated.federation import Federation
from federated.flower.judged_record import Judgeable, read_judged
from federated.flower.messages import METRICS, Fault, order_record, read_reply, reason, said_of_work
from federated.inspection import LARGEST_WEIGHT, Expected, Ledger
from federated.intake import Intake, Partial, Sent, Told
from federated.site import Judged
from federated.transforms.chain import sent as sent_shapes

CLIENT, SIZES = "client", ("examples", "held-out")  # what a node says of itself
ASK_S = 0.2  # between two looks for replies
NOT_TAKEN = Fault("the SuperLink did not take its message: its node is not registered any more, or it is too large")


class GridEngine:
    """Clients behind a Grid. Every node is one client: the number that its node config calls `partition-id`."""

    def __init__(self, federation: Federation, grid: Grid, run_id: int, nodes: "dict[int, Node] | None" = None) -> None:
        """`nodes`: the node of each client, which is asked for where it is not known."""
        self.federation, self.grid, self.run_id = federation, grid, run_id
        frame, expected = federation.frame, federation.expected
        self.intake = Intake(federation.run, frame, expected)
        payload = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in expected.vectors.items()}
        self.sent = Expected(sent_shapes(federation.run.transforms, payload, frame), max_weight=expected.max_weight)
        self.nodes = nodes or nodes_of(grid, len(federation.clients), federation.run.timeout_s)

    def train(self, order: Order, chunks: Chunks) -> Iterator[tuple[int, Partial]]:
        answers = self._ask(order, chunks, MessageType.TRAIN)
        ledger = Ledger.of_round(self.run_id, order.round, answers)
        for number, chunk in chunks.items():
            partial = Partial()
            for work in chunk:
                self.intake.take(partial, work, order.round, self._sent(work.client, answers[work.client], ledger))
            yield number, partial

    def judge(self, order: Order, chunks: Chunks) -> Iterator[tuple[int, Judged]]:
        answers = self._ask(order, chunks, MessageType.EVALUATE)
        wanted = Judgeable.of(self.federation)
        for number, chunk in chunks.items():
            judged = Judged()
            for work in chunk:
                answer = answers[work.client]
                found = answer if isinstance(answer, Fault) else read_judged(answer, work.client, wanted)
                judged.merge(as_judged(found, work.client))
            yield number, judged

    def _ask(self, order: Order, chunks: Chunks, kind: str) -> dict[int, Message | Fault]:
        """Each client's answer."""
        content = order_record(order, self.federation.frame, self.run_id)
        clients = [work.client for chunk in chunks.values() for work in chunk]
        messages = [Message(content, self.nodes[c].id, kind, group_id=str(order.round)) for c in clients]
        return dict(zip(clients, ask(self.grid, messages, self.federation.run.timeout_s), strict=True))

    def _sent(self, client: int, message: Message | Fault, ledger: Ledger) -> Sent:
        """What a message says, if it is a good one."""
        answer = message if isinstance(message, Fault) else read_reply(message, self.sent, client)
        if isinstance(answer, Fault):
            return Sent(Told(client, fault=answer.text))
        if wrong := ledger.accept(client, answer.round, answer.run_id):
            return Sent(Told(client, fault=wrong))
        told = Told(client, *said_of_work(answer.metrics), answer.reply.size_bytes)
        return Sent(told, answer.reply)


def as_judged(found: Judged | Fault, client: int) -> Judged:
    """What a client's answer to an evaluation comes to."""
    return found if isinstance(found, Judged) else Judged(failed=[Told(client, fault=found.text)])


def ask(grid: Grid, messages: Sequence[Message], timeout_s: float) -> list[Message | Fault]:
    """What each message's node answers, or why there is no answer. Waits until all is clear, or the time is over.

    Flower's own `send_and_receive` looks every 3 s. Of a node that died the SuperLink says so in the node's place.
    """
    taken = list(grid.push_messages(messages))
    taken += [""] * (len(messages) - len(taken))  # none, where they are too large
    nodes = {name: message.metadata.dst_node_id for name, message in zip(taken, messages, strict=True) if name}
    found, waiting, deadline = dict[str, Message](), set(nodes), time.monotonic() + timeout_s
    while waiting and time.monotonic() < deadline:
        for reply in grid.pull_messages(waiting):
            name, sender = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
            is_superlinks = sender == SUPERLINK_NODE_ID and reply.has_error()
            if name in nodes and (sender == nodes[name] or is_superlinks):
                waiting.discard(name)
                found[name] = reply
        if waiting:
            time.sleep(ASK_S)
    late = Fault(f"no answer within timeout_s, {timeout_s:g} s")
    answers = [found.get(name, late) if name else NOT_TAKEN for name in taken]
    return [
        Fault(reason(answer.error)) if isinstance(answer, Message) and answer.has_error() else answer
        for answer in answers
    ]


@dataclass(frozen=True)
class Node:
    """Who answers for a client: Flower's number of the node, and how many examples it has, where it was asked."""

    id: int
    examples: int = 0
    held_out: int = 0


def nodes_of(grid: Grid, clients: int, timeout_s: float) -> dict[int, Node]:
    """The node of each client. Raises WorkerError if one is missing or two say they are the same."""
    messages = [Message(RecordDict(), node, MessageType.QUERY, group_id="0") for node in grid.get_node_ids()]
    found, faults = dict[int, Node](), list[str]()
    for message, reply in zip(messages, ask(grid, messages, timeout_s), strict=True):
        if isinstance(reply, Fault):
            faults.append(reply.text)
            continue
        record = reply.content.get(METRICS) if reply.has_content() else None
        told = [record.get(name, 0) for name in (CLIENT, *SIZES)] if isinstance(record, MetricRecord) else []
        numbers = [number for number in told if isinstance(number, int) and 0 <= number < LARGEST_WEIGHT]
        if len(numbers) != 1 + len(SIZES):
            faults.append("something else than which client it is")
            continue
        client, *sizes = numbers
        if client in found:
            raise WorkerError(f"federation: two nodes say they are client {client}; start each with its own")
        found[client] = Node(message.metadata.dst_node_id, *sizes)
    missing = [client for client in range(clients) if client not in found]
    if missing:
        why = f"one said: {faults[0]}" if faults else "start a SuperNode with --node-config 'partition-id=N' for each"
        raise WorkerError(f"federation: {len(missing)} clients have no node, the first is client {missing[0]}; {why}")
    return {client: found[client] for client in range(clients)}
