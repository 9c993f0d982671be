"""Flower's grid over a pool: what a ServerApp may do with it, with apps of a few lines that are made in the test."""

import contextlib
import functools
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from core.errors import ConfigError, ResourceError, WorkerError
from core.pool import Done, LocalPool
from federated.flower import version
from federated.flower.grid import PoolGrid
from federated.flower.node import Nodes, addressed

Handler = Callable[[Message, Context], Message]


def serve(
    handler: Handler, server: Callable[[Grid], Any], pool: LocalPool | None = None, clients: int = 3
) -> tuple[list[Any], list[dict[str, Any]]]:
    """[what the server's function gave], and what was reported."""
    app = ClientApp()
    app.train()(handler)
    given: list[Any] = []
    records: list[dict[str, Any]] = []
    grid = PoolGrid(pool or LocalPool(), Nodes(lambda: app, clients, Run.create_empty(7), {}), records.append)
    grid.serve(lambda: given.append(server(grid)))
    return given, records


def to_all(grid: Grid, content: RecordDict | None = None, **options: Any) -> list[Message]:
    return [Message(content or RecordDict(), node, "train", **options) for node in grid.get_node_ids()]


def reply(message: Message, **numbers: float) -> Message:
    return Message(RecordDict({"metrics": MetricRecord(dict(numbers))}), reply_to=message)


def numbers(replies: Any, name: str = "x") -> list[Any]:
    return [None if r.has_error() else r.content["metrics"][name] for r in replies]


def partition(message: Message, context: Context) -> Message:
    return reply(message, x=context.node_config["partition-id"])


def counting(message: Message, context: Context) -> Message:
    """How many messages this node has had, by its state."""
    state = context.state.config_records.setdefault("state", ConfigRecord({"count": 0}))
    state["count"] = int(state["count"]) + 1
    context.state["state"] = state
    return reply(message, x=state["count"])


class Backwards(LocalPool):
    """A pool whose items finish in another order."""

    def run(self, fn: Any, items: Mapping[Any, Any], cost: Any = None) -> Iterator[Done[Any, Any]]:
        return super().run(fn, dict(reversed(items.items())))


def test_replies_come_in_the_order_of_the_messages_whatever_finishes_first() -> None:
    (found,), _ = serve(partition, lambda grid: numbers(grid.send_and_receive(to_all(grid))), Backwards())
    assert found == [0, 1, 2]


def test_nodes_have_the_same_ids_in_every_run_and_know_their_partition() -> None:
    def own(message: Message, context: Context) -> Message:
        assert context.node_config["num-partitions"] == 3
        return reply(message, x=context.node_id)

    (found,), _ = serve(own, lambda grid: (list(grid.get_node_ids()), numbers(grid.send_and_receive(to_all(grid)))))
    assert found == ([2, 3, 4], [2, 3, 4])


def test_what_was_pushed_is_pulled_once_by_its_id() -> None:
    def server(grid: Grid) -> list[Any]:
        first, second, third = grid.push_messages(to_all(grid))
        one = grid.pull_messages([second])
        assert list(grid.pull_messages([second])) == []
        rest = grid.pull_messages([third, "unknown", first])
        assert [r.metadata.reply_to_message_id for r in [*one, *rest]] == [second, third, first]
        return numbers([*one, *rest])

    assert serve(partition, server)[0] == [[1, 2, 0]]


def test_messages_to_one_node_are_done_one_after_the_other_with_its_state() -> None:
    def server(grid: Grid) -> list[Any]:
        grid.send_and_receive(to_all(grid))
        messages = [Message(RecordDict(), node, "train") for node in (2, 2, 3, 2)]
        return numbers(grid.send_and_receive(messages))

    assert serve(counting, server)[0] == [[2, 3, 2, 4]]


def test_the_state_of_a_client_that_fails_is_what_it_was_before() -> None:
    def failing(message: Message, context: Context) -> Message:
        given = counting(message, context)
        if "fail" in message.content:
            raise RuntimeError("no\nmore")
        return given

    def server(grid: Grid) -> list[Any]:
        grid.send_and_receive(to_all(grid))
        failed = grid.send_and_receive(to_all(grid, RecordDict({"fail": ConfigRecord()})))
        assert {(r.error.code, r.error.reason) for r in failed} == {(2, "RuntimeError: no\nmore")}
        return numbers(grid.send_and_receive(to_all(grid)))

    found, records = serve(failing, server)
    assert found == [[2, 2, 2]]
    assert [r.get("failed") for r in records if r["event"] == "exchange"] == [0, 3, 0]
    (failure,) = [r for r in records if r["event"] == "failure"]
    assert failure["client"] == 0 and 'raise RuntimeError("no\\nmore")' in failure["traceback"]


def test_a_client_that_exits_or_gives_no_message_has_failed() -> None:
    def odd(message: Message, context: Context) -> Any:
        return raise_exit() if context.node_id == 2 else None

    def raise_exit() -> None:
        raise SystemExit(3)

    (found,), _ = serve(odd, lambda grid: [r.error.reason for r in grid.send_and_receive(to_all(grid))], clients=2)
    assert found == ["SystemExit: 3", "TypeError: the ClientApp gave a NoneType, not a Message"]


def test_what_a_client_does_to_its_message_and_its_reply_nobody_else_sees() -> None:
    def keeping(message: Message, context: Context) -> Message:
        record = message.content["arrays"]
        (array,) = record.to_numpy_ndarrays(keep_input=False)  # takes it out of the record
        message.content["config"]["mine"] = 1
        message.content["config"]["list"].append(1)
        assert message.content["config"]["list"] == [0, 1]
        context.state["kept"] = context.state.get("kept", ArrayRecord([array]))
        return Message(RecordDict({"arrays": context.state["kept"]}), reply_to=message)

    def server(grid: Grid) -> list[int]:
        content = RecordDict({"arrays": ArrayRecord([np.ones(2)]), "config": ConfigRecord({"list": [0]})})
        for _ in range(2):
            for r in grid.send_and_receive(to_all(grid, content)):
                assert len(r.content["arrays"].to_numpy_ndarrays(keep_input=False)) == 1
        return [len(content["arrays"]), len(content["config"])]

    found, records = serve(keeping, server)
    assert found == [[1, 1]] and not any(r["failed"] for r in records)


def test_arrays_that_many_messages_carry_are_shared_once_and_arrive_in_their_place() -> None:
    shares, carried = [], []

    class Watched(LocalPool):
        def share(self, value: Any) -> Any:
            shares.append(value)
            return super().share(value)

        def run(self, fn: Any, items: Mapping[Any, Any], cost: Any = None) -> Iterator[Done[Any, Any]]:
            carried.extend(sum(len(r) for r in item.message.content.array_records.values()) for item in items.values())
            return super().run(fn, items)

    def names(message: Message, context: Context) -> Message:
        assert list(message.content) == ["own", "arrays", "config"]
        (array,), (own,) = message.content["arrays"].values(), message.content["own"].values()
        return reply(message, x=float(array.numpy().sum() + own.numpy().sum()))

    def server(grid: Grid) -> list[Any]:
        arrays, config = ArrayRecord([np.ones(4)]), ConfigRecord({"a": 1})
        contents = [
            RecordDict({"own": ArrayRecord({"o": Array(np.full(1, n))}), "arrays": arrays, "config": config})
            for n in grid.get_node_ids()
        ]
        messages = [Message(content, n, "train") for n, content in zip(grid.get_node_ids(), contents, strict=True)]
        found = numbers(grid.send_and_receive(messages))
        assert all(content["arrays"]["0"].numpy().sum() == 4 for content in contents)
        return found

    assert serve(names, server, Watched())[0] == [[6, 7, 8]]
    assert len(shares) == 1 and carried == [1, 1, 1]


def test_global_generators_are_addressed_so_that_order_does_not_matter() -> None:
    def drawing(message: Message, context: Context) -> Message:
        return reply(message, x=random.random(), y=float(np.random.rand()), z=float(torch.rand(())))

    def server(grid: Grid) -> list[list[float]]:
        found = [random.random()]
        for _ in range(2):
            found += [r.content["metrics"][name] for r in grid.send_and_receive(to_all(grid)) for name in "xyz"]
        return [*found, random.random(), float(torch.rand(()))]

    (first,), _ = serve(drawing, server)
    (second,), _ = serve(drawing, server, Backwards())
    assert first == second and len(set(first)) == len(first)


def test_addressed_generators_go_on_afterwards_as_if_nothing_had_been() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    with addressed(1, "a"):
        first = draw()
        with addressed(1, "b"):
            other = draw()
        then = draw()
    with addressed(1, "a"):
        assert draw() == first and draw() == then
    assert first != other


def test_after_its_timeout_a_call_returns_what_is_there_and_the_rest_never_runs() -> None:
    released, ran = threading.Event(), []

    def slow(message: Message, context: Context) -> Message:
        ran.append(context.node_id)
        if context.node_id == 3:
            released.wait()
        return partition(message, context)

    def server(grid: Grid) -> list[Any]:
        found = numbers(grid.send_and_receive(to_all(grid), timeout=0.3))
        released.set()
        return [*found, *numbers(grid.send_and_receive([Message(RecordDict(), 2, "train")]))]

    assert serve(slow, server)[0] == [[0, 0]]
    assert ran == [2, 3, 2]


def test_a_message_that_is_too_old_is_not_done() -> None:
    def server(grid: Grid) -> list[int]:
        messages = to_all(grid)
        messages[1].metadata.created_at -= 2 * messages[1].metadata.ttl
        return [r.error.code if r.has_error() else -1 for r in grid.send_and_receive(messages)]

    assert serve(partition, server)[0] == [[-1, 3, -1]]


def test_a_message_to_nobody_is_answered_with_an_error() -> None:
    def server(grid: Grid) -> list[Any]:
        first, second = grid.send_and_receive([Message(RecordDict(), node, "train") for node in (99, 2)])
        return [first.error.code, first.error.reason, *numbers([second])]

    assert serve(partition, server)[0] == [[5, "there is no node 99", 0]]


def test_threads_that_send_one_message_each_of_a_round_are_one_exchange() -> None:
    def server(grid: Grid) -> list[Any]:
        found: dict[int, Any] = {}

        def one(message: Message) -> None:
            found[message.metadata.dst_node_id] = numbers(grid.send_and_receive([message]))[0]

        for group in ("1", "2"):
            threads = [threading.Thread(target=one, args=(m,)) for m in to_all(grid, group_id=group)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return [found[node] for node in sorted(found)]

    found, records = serve(counting, server, clients=20)
    assert found == [[2] * 20]
    assert [(r["exchange"], r["round"], r["clients"]) for r in records] == [(1, 1, 20), (2, 2, 20)]


def test_an_exchange_tells_bytes_and_means_weighted_by_examples() -> None:
    def measured(message: Message, context: Context) -> Message:
        part = context.node_config["partition-id"]
        content = {
            "metrics": MetricRecord({"num-examples": part, "loss": float(part), "list": [part, 5][: 1 + part % 2]})
        }
        return Message(RecordDict({"arrays": message.content["arrays"], **content}), reply_to=message)

    arrays = ArrayRecord([np.zeros(100, dtype=np.float32)])
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 4, "n": [], "s": ["ab", "c"]})})
    size, config = arrays.count_bytes(), len("server-round") + 8 + len("n") + len("s") + 3
    _, (record,) = serve(measured, lambda grid: grid.send_and_receive(to_all(grid, content)))
    assert size > 400
    assert record.pop("seconds") > 0 and record.pop("bytes_up") > 3 * size
    assert record == {
        "event": "exchange",
        "exchange": 1,
        "round": 4,
        "type": "train",
        "clients": 3,
        "failed": 0,
        "bytes_down": 3 * (size + config),
        "metrics": {"loss": (1 * 1 + 2 * 2) / 3, "list": [(1 * 1 + 2 * 2) / 3, 5.0]},
    }


def test_numbers_that_say_who_replies_are_not_averaged() -> None:
    def measured(message: Message, context: Context) -> Message:
        part = context.node_config["partition-id"]
        who = {"partition-id": part, "clientId": part, "cid": part, "NODE_ID": part, "client": part}
        kept = {"width": float(part), "idle": part, "id-loss": part + 0.5}
        return Message(RecordDict({"metrics": MetricRecord({**who, **kept})}), reply_to=message)

    _, (record,) = serve(measured, lambda grid: grid.send_and_receive(to_all(grid)))
    assert record["metrics"] == {"width": 1.0, "idle": 1.0, "id-loss": 1.5}


def test_a_pool_that_fails_ends_the_server_too() -> None:
    class Failing(LocalPool):
        def run(self, fn: Any, items: Mapping[Any, Any], cost: Any = None) -> Iterator[Done[Any, Any]]:
            raise WorkerError("all workers are gone")

    reached: list[str] = []

    def server(grid: Grid) -> None:
        with contextlib.suppress(Exception):  # an app must not be able to go on
            grid.send_and_receive(to_all(grid))
        reached.append("after")

    with pytest.raises(WorkerError, match="all workers are gone"):
        serve(partition, server, Failing())
    assert reached == [] and "serverapp" not in [thread.name for thread in threading.enumerate()]


def test_what_the_server_raises_is_raised() -> None:
    def server(grid: Grid) -> None:
        grid.send_and_receive(to_all(grid))
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        serve(partition, server)


def test_another_version_of_flower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version.flwr, "__version__", "1.42.0")
    with pytest.raises(ResourceError, match=r"1\.41\.x is needed and 1\.42\.0 is here"):
        serve(partition, len)


def test_a_strategy_that_waits_for_more_nodes_than_there_are_is_refused() -> None:
    from flwr.server.client_manager import SimpleClientManager
    from flwr.server.compat.app_utils import start_update_client_manager_thread
    from flwr.serverapp.strategy.strategy_utils import sample_nodes

    def older(grid: Grid) -> Any:
        manager = SimpleClientManager()
        thread, stop, ready = start_update_client_manager_thread(grid, manager)
        ready.wait()
        try:
            assert len(manager.sample(num_clients=2, min_num_clients=3)) == 2
            return manager.sample(num_clients=2, min_num_clients=9)
        finally:
            stop.set()
            thread.join()

    for server in (functools.partial(sample_nodes, min_available_nodes=9, sample_size=2), older):
        with pytest.raises(ConfigError, match="clients: the app's strategy waits for 9 nodes and there are 3"):
            serve(partition, server)
