"""The engine over Flower's own Grid: one message for each client, and what its ClientApp answers.

What a worker of a pool does for its chunk the server does here for each reply, in the same order, so that the sums are
the same. Only a timeout can make a difference: a client that does not answer in time does not count.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from core.errors import WorkerError
from federated.engine import Chunks
from federated.exchange import Order
from federated.federation import Federation
from federated.flower.judged_record import read_judged
from federated.flower.messages import METRICS, Fault, order_record, read_reply, reason, said_of_work
from federated.inspection import LARGEST_WEIGHT, Expected, Ledger
from federated.intake import Intake, Partial, Sent, Told
from federated.judging import metrics_for
from federated.site import Judged
from federated.transforms.chain import sent as sent_shapes

CLIENT, SIZES = "client", ("examples", "held-out")  # what a node says of itself
ASK_S = 0.2  # between two looks for replies
ANSWER_S = 3600.0  # how long an answer is waited for


class GridEngine:
    """Clients behind a Grid. Every node is one client: the number that its node config calls `partition-id`."""

    def __init__(
        self,
        federation: Federation,
        grid: Grid,
        run_id: int,
        timeout_s: float = ANSWER_S,
        nodes: "dict[int, Node] | None" = None,
    ) -> None:
        """`nodes`: the node of each client, which is asked for where it is not known."""
        self.federation, self.grid, self.run_id, self.timeout_s = federation, grid, run_id, timeout_s
        frame, expected = federation.frame, federation.expected
        self.intake = Intake(federation.run, frame, expected)
        payload = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in expected.vectors.items()}
        self.sent = Expected(sent_shapes(federation.run.transforms, payload, frame), max_weight=expected.max_weight)
        self.nodes = nodes or nodes_of(grid, len(federation.clients), timeout_s)

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
        metrics = metrics_for(self.federation)
        for number, chunk in chunks.items():
            judged = Judged()
            for work in chunk:
                message = answers[work.client]
                found = None if message is None else read_judged(message, work.client, metrics)
                judged.merge(found or Judged(failed=[Told(work.client, fault="no good answer to the evaluation")]))
            yield number, judged

    def _ask(self, order: Order, chunks: Chunks, kind: str) -> dict[int, Message | None]:
        """Each client's answer; None if it did not come in time."""
        content = order_record(order, self.federation.frame, self.run_id)
        clients = [work.client for chunk in chunks.values() for work in chunk]
        nodes = {self.nodes[client].id: client for client in clients}
        messages = [Message(content, node, kind, group_id=str(order.round)) for node in nodes]
        found: dict[int, Message | None] = dict.fromkeys(clients)
        for reply in replies(self.grid, messages, self.timeout_s):
            client = nodes.get(reply.metadata.src_node_id)
            if client is not None:
                found[client] = reply
        return found

    def _sent(self, client: int, message: Message | None, ledger: Ledger) -> Sent:
        """What a message says, if it is a good one."""
        if message is None:
            return Sent(Told(client, fault=f"no answer within {self.timeout_s:g} s"))
        answer = read_reply(message, self.sent, client)
        if isinstance(answer, Fault):
            return Sent(Told(client, fault=answer.text))
        if wrong := ledger.accept(client, answer.round, answer.run_id):
            return Sent(Told(client, fault=wrong))
        told = Told(client, *said_of_work(answer.metrics), answer.reply.size_bytes)
        return Sent(told, answer.reply)


def replies(grid: Grid, messages: list[Message], timeout_s: float) -> Iterator[Message]:
    """As they come, until all are there or the time is over. Flower's own `send_and_receive` looks every 3 s."""
    waiting, deadline = set(grid.push_messages(messages)), time.monotonic() + timeout_s
    while waiting and time.monotonic() < deadline:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply
        if waiting:
            time.sleep(ASK_S)


@dataclass(frozen=True)
class Node:
    """Who answers for a client: Flower's number of the node, and how many examples it has, where it was asked."""

    id: int
    examples: int = 0
    held_out: int = 0


def nodes_of(grid: Grid, clients: int, timeout_s: float = ANSWER_S) -> dict[int, Node]:
    """The node of each client. Raises WorkerError if one is missing or two say they are the same."""
    messages = [Message(RecordDict(), node, MessageType.QUERY, group_id="0") for node in grid.get_node_ids()]
    found, faults = dict[int, Node](), list[str]()
    for reply in replies(grid, messages, timeout_s):
        record = reply.content.get(METRICS) if reply.has_content() else None
        told = [record.get(name, 0) for name in (CLIENT, *SIZES)] if isinstance(record, MetricRecord) else []
        numbers = [number for number in told if isinstance(number, int) and 0 <= number < LARGEST_WEIGHT]
        if len(numbers) != 1 + len(SIZES):
            faults.append(reason(reply.error) if reply.has_error() else "something else than which client it is")
            continue
        client, *sizes = numbers
        if client in found:
            raise WorkerError(f"federation: two nodes say they are client {client}; start each with its own")
        found[client] = Node(reply.metadata.src_node_id, *sizes)
    missing = [client for client in range(clients) if client not in found]
    if missing:
        why = f"one said: {faults[0]}" if faults else "start a SuperNode with --node-config 'partition-id=N' for each"
        raise WorkerError(f"federation: {len(missing)} clients have no node, the first is client {missing[0]}; {why}")
    return {client: found[client] for client in range(clients)}
