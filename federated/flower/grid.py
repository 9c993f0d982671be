"""Flower's `Grid` over a pool of workers: what an unchanged ServerApp talks to instead of a network.

The ServerApp lives in a thread of its own, as in Flower's simulator. The main thread waits for its messages, runs the
ClientApp for each as an item of the pool, and answers: nothing polls and nothing sleeps. A node's `Context` comes back
from the worker with the reply, and goes out again with the node's next message.
"""

import contextlib
import copy
import functools
import gc
import inspect
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from flwr.app import ArrayRecord, Context, Error, Message, MessageType, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity

from core.errors import ConfigError
from core.pool import Done, Shared, WorkerPool
from core.randomness import seed_of
from federated.flower import version
from federated.flower.node import Answer, Item, Nodes, addressed, answer
from federated.flower.traffic import Exchange, bytes_of, round_of

GRACE_S = 5.0  # how long a ServerApp that has to stop is waited for
Report = Callable[[dict[str, Any]], None]


@dataclass(eq=False)
class Post:
    """Messages that one caller waits for, and the replies by their place among them."""

    messages: list[Message]
    replies: dict[int, Message] = field(default_factory=dict)
    is_over: threading.Event = field(default_factory=threading.Event)
    is_abandoned: bool = False

    def put(self, index: int, reply: Message) -> None:
        self.replies[index] = reply
        if len(self.replies) == len(self.messages):
            self.is_over.set()


class PoolGrid(Grid):
    """A grid for one run. One run per process at a time: Flower keeps the sender of messages in a class.

    report: called by the thread of `serve` only, with `Exchange.record()`, with `Exchange.failures` whose error is new,
    and with what others `say`.
    """

    def __init__(self, pool: WorkerPool, nodes: Nodes, report: Report) -> None:
        _identify(nodes.run.run_id)
        self._pool, self.nodes, self._report = pool, nodes, report
        self._inbox: queue.SimpleQueue[Post | dict[str, Any] | None] = queue.SimpleQueue()
        self._posts: list[Post] = []  # those that are being answered
        self._numbers = itertools.count(1)
        self._contexts: dict[int, Context] = {}
        self._received: Counter[int] = Counter()  # messages, by node
        self._pushed: list[Message] = []  # and did not run yet
        self._running_pushed = threading.Lock()  # nothing is sent while they run
        self._replies: dict[str, Message] = {}  # to what was pushed, until they are pulled
        self._exchange: Exchange | None = None
        self._shown: set[str] = set()  # errors
        self._is_closed = False
        self._error: Exception | SystemExit | None = None
        self.exchanges = self.failed = self.trained = 0
        self.untrained: list[dict[str, Any]] = []  # failures of clients that were to train

    def serve(self, server: Callable[[], None]) -> None:
        """Runs `server`, which talks to this grid, to its end. Raises what it raises, and what the pool raises."""
        thread = threading.Thread(target=self._live, args=(server,), name="serverapp", daemon=True)
        gc.freeze()  # Flower collects all garbage for each reply: without what is there for good it takes a hundredth
        with addressed(self.nodes.seed, "server"):
            thread.start()
            try:
                while not self._serve_once():
                    pass
                self._end_exchange()
            finally:
                self._close()
                thread.join(GRACE_S)
                gc.unfreeze()
        if self._error is not None:
            raise self._error

    def say(self, record: dict[str, Any]) -> None:
        """Reports a record, from any thread."""
        self._inbox.put(record)

    def _live(self, server: Callable[[], None]) -> None:
        try:
            with contextlib.suppress(RunNotRunningException):  # the grid was closed, and `serve` knows why
                server()
                self._run_pushed()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - `serve` raises it
            self._error = error
        finally:
            self._inbox.put(None)

    def _close(self) -> None:
        """Lets go of all who wait; they see that the grid is closed."""
        self._is_closed = True
        while not self._inbox.empty():
            if isinstance(entry := self._inbox.get(), Post):
                self._posts.append(entry)
        for post in self._posts:
            post.is_over.set()

    # What a ServerApp calls

    def set_run(self, run: Run) -> None:
        """The run was given when the grid was made."""

    @property
    def run(self) -> Run:
        return self.nodes.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All nodes, which are online from the start. ConfigError where a strategy waits for more of them."""
        if self._is_closed:
            raise RunNotRunningException
        if (needed := _awaited()) > self.nodes.clients:
            raise ConfigError(
                f"clients: the app's strategy waits for {needed} nodes and there are {self.nodes.clients}; "
                f"raise clients, or lower the strategy's number of available nodes"
            )
        return list(self.nodes.ids)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keeps them: all run, in this order, before a reply is pulled, before anything else is sent, or the app ends.

        So no reply depends on when it was asked for.
        """
        self._pushed += (messages := self._numbered(messages))
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages; waits for them, and gives each once."""
        self._run_pushed()
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies in the order of the messages; after `timeout` seconds those that are there.

        What has not begun by then never will.
        """
        self._run_pushed()
        return self._answered(self._numbered(messages), timeout)

    def _run_pushed(self) -> None:
        with self._running_pushed:
            pushed, self._pushed = self._pushed, []
            for messages in _in_turn(pushed):
                for reply in self._answered(messages, None):
                    self._replies[reply.metadata.reply_to_message_id] = reply

    def _numbered(self, messages: Iterable[Message]) -> list[Message]:
        messages = list(messages)
        for message in messages:
            _name(message, next(self._numbers))
        return messages

    def _answered(self, messages: list[Message], timeout: float | None) -> list[Message]:
        if not messages:
            return []
        self._inbox.put(post := Post(messages))
        if not self._is_closed:
            post.is_abandoned = not post.is_over.wait(timeout)
        if self._is_closed:
            raise RunNotRunningException
        return [reply for _, reply in sorted(post.replies.items(), key=lambda item: item[0])]

    # What the thread of `serve` does

    def _serve_once(self) -> bool:
        """Answers all that waits, at least one thing. Says whether the ServerApp has ended."""
        entries = [self._inbox.get()]
        while not self._inbox.empty():
            entries.append(self._inbox.get())
        self._posts = [entry for entry in entries if isinstance(entry, Post)]  # first: a report may raise
        for entry in entries:
            if isinstance(entry, dict):
                self._report(entry)
        if self._posts:
            self._answer(self._posts)
        return None in entries

    def _answer(self, posts: list[Post]) -> None:
        key = _key_of(posts)
        if self._exchange is None or key is None or self._exchange.key != key:
            self._end_exchange()
            self.exchanges += 1
            self._exchange = Exchange(self.exchanges, key, round_of(posts[0].messages[0]))
        began = time.perf_counter()
        waiting = [(post, index) for post in posts for index in range(len(post.messages))]
        while waiting := [(post, index) for post, index in waiting if not post.is_abandoned]:
            wave: dict[int, tuple[Post, int]] = {}  # by node, which does one message at a time
            for post, index in waiting:
                wave.setdefault(post.messages[index].metadata.dst_node_id, (post, index))
            self._run(wave, self._exchange)
            waiting = [(post, index) for post, index in waiting if index not in post.replies]
        self._exchange.seconds += time.perf_counter() - began
        if key is None:
            self._end_exchange()

    def _run(self, wave: dict[int, tuple[Post, int]], exchange: Exchange) -> None:
        known = {}
        for node, (post, index) in wave.items():
            if node in self.nodes.ids:
                known[node] = post.messages[index]
            else:
                error = Error(ErrorCode.NODE_UNAVAILABLE, f"there is no node {node}")
                self._deliver(post, index, Answer(Message(error, reply_to=post.messages[index])), exchange)
        exchange.bytes_down += bytes_of(message.content for message in known.values())
        common = _common(known.values())
        with _shared(self._pool, common) as shared:
            work = functools.partial(answer, self.nodes.client, shared)
            items = {node: self._item(message, common) for node, message in known.items()}
            results = cast("Generator[Done[int, Answer]]", self._pool.run(work, items))
            with contextlib.closing(results):
                for done in results:
                    self._deliver(*wave[done.key], done.result, exchange)
                    if all(post.is_abandoned for post, _ in wave.values()):
                        break

    def _item(self, message: Message, common: dict[int, ArrayRecord]) -> Item:
        node = message.metadata.dst_node_id
        self._received[node] += 1
        links = {name: id(record) for name, record in message.content.items() if id(record) in common}
        light = copy.copy(message)
        light.content = RecordDict({n: ArrayRecord() if n in links else r for n, r in message.content.items()})
        context = self._contexts.get(node) or self.nodes.context(node)
        return Item(light, links, context, seed_of(self.nodes.seed, "node", node, self._received[node]))

    def _deliver(self, post: Post, index: int, answer: Answer, exchange: Exchange) -> None:
        node = post.messages[index].metadata.dst_node_id
        _name(answer.reply, next(self._numbers))
        if answer.context is not None:
            self._contexts[node] = answer.context
        exchange.add(node, answer)
        post.put(index, answer.reply)

    def _end_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        failures = sorted(exchange.failures, key=lambda failure: failure["client"])
        self.failed += len(failures)
        if any(kind.partition(".")[0] == MessageType.TRAIN for kind in exchange.types):
            self.trained += len(exchange.metrics)
            self.untrained += failures
        for failure in failures:
            if failure["error"] not in self._shown:
                self._shown.add(failure["error"])
                self._report(failure)
        self._report(exchange.record())


def _identify(run_id: int) -> None:
    """Who sends the messages of this process from now on: `Message` asks for it."""
    version.require()
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SUPERLINK_NODE_ID, 1


def _name(message: Message, number: int) -> None:
    message.metadata.__dict__["_message_id"] = str(number)  # there is no setter; Flower's own grids do the same


def _key_of(posts: list[Post]) -> tuple[str, str] | None:
    """What the single messages of a round have in common; None for a call that stands for itself."""
    first = posts[0].messages[0].metadata
    is_round = bool(first.group_id) and all(len(post.messages) == 1 for post in posts)
    return (first.message_type, first.group_id) if is_round else None


def _awaited() -> int:
    """How many nodes the strategy that is calling waits for; 0 if none is.

    Flower's strategies wait for ever, and the question that they ask cannot be answered with a no.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("flwr.server"):
            if frame.f_code.co_name == "sample_nodes":
                return int(frame.f_locals["min_available_nodes"])
            if frame.f_code.co_name == "wrapped_method":  # of an older strategy's client manager
                arguments = frame.f_locals["kwargs"]
                return int(arguments.get("min_num_clients") or arguments.get("num_clients") or 0)
        frame = frame.f_back
    return 0


def _in_turn(messages: list[Message]) -> Iterator[list[Message]]:
    """In parts in which no node has two, as an app that pushes round by round would have sent them."""
    part: dict[int, Message] = {}
    for message in messages:
        if message.metadata.dst_node_id in part:
            yield list(part.values())
            part = {}
        part[message.metadata.dst_node_id] = message
    if part:
        yield list(part.values())


def _common(messages: Iterable[Message]) -> dict[int, ArrayRecord]:
    """The arrays that several messages carry as the same object, by its identity."""
    records = [record for message in messages for record in message.content.values() if isinstance(record, ArrayRecord)]
    counts = Counter(map(id, records))
    return {id(record): record for record in records if counts[id(record)] > 1}


@contextlib.contextmanager
def _shared(pool: WorkerPool, common: dict[int, ArrayRecord]) -> Iterator[Shared[dict[int, ArrayRecord]] | None]:
    if not common:
        yield None
        return
    shared = pool.share(common)
    try:
        yield shared
    finally:
        shared.release()
