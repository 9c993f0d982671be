"""What is told of the messages of a simulated Flower federation: how many, how large, what failed, the metrics."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from flwr.app import Array, ConfigRecord, Message, MetricRecord, RecordDict

from federated.flower.node import FIRST_NODE, Answer

Metrics = dict[str, float | list[float]]  # by name, of one reply or in the mean
# Numbers that say who replies, or in which round: their whole name, or a word in it
IDENTITIES, IDENTITY_WORDS = {"client", "partition", "node", "round", "run"}, {"id", "cid", "pid", "uid"}
WEIGHTS = ("num-examples", "num_examples")  # what Flower's strategies weight by; older clients write it with _


@dataclass
class Exchange:
    """Messages that belong together: those of one call, or a round of calls with one message each, as older strategies
    make them."""

    number: int
    key: tuple[str, str] | None  # message type and group of such a round
    round: int | None = None
    seconds: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    types: set[str] = field(default_factory=set)
    clients: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)  # each as it is reported
    metrics: list[tuple[int, Metrics]] = field(default_factory=list)  # with the node

    def add(self, node: int, answer: Answer) -> None:
        """Takes an answer in."""
        reply = answer.reply
        self.clients += 1
        self.types.add(reply.metadata.message_type)
        if not reply.has_error():
            self.bytes_up += bytes_of([reply.content])
            self.metrics.append((node, _numbers(reply.content)))
            return
        self.failures.append(
            {
                "event": "failure",
                "exchange": self.number,
                "client": node - FIRST_NODE,
                "error": reply.error.reason or f"code {reply.error.code}",
                "traceback": answer.failure.traceback if answer.failure else "",
            }
        )

    def record(self) -> dict[str, Any]:
        """How it went. `metrics` are the clients' means, weighted by their number of examples where they tell it."""
        return {
            "event": "exchange",
            "exchange": self.number,
            "round": self.round,
            "type": "+".join(sorted(self.types)),
            "clients": self.clients,
            "failed": len(self.failures),
            "seconds": self.seconds,
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            "metrics": _means([metrics for _, metrics in sorted(self.metrics, key=lambda pair: pair[0])]),
        }


def round_of(message: Message) -> int | None:
    """The round that Flower's strategies write into a message: the newer into a config, the older into the group."""
    for record in message.content.values():
        if isinstance(record, ConfigRecord) and isinstance(number := record.get("server-round"), int):
            return number
    group = message.metadata.group_id
    return int(group) if group.isdecimal() else None


def bytes_of(contents: Iterable[RecordDict]) -> int:
    """Bytes of arrays, metrics and configs with their keys: 8 for a number, and an array as Flower sends it."""
    sizes: dict[int, int] = {}  # by the identity of a record: many messages carry the same
    total = 0
    for content in contents:
        for record in content.values():
            if id(record) not in sizes:
                sizes[id(record)] = sum(len(key) + _size(value) for key, value in record.items())
            total += sizes[id(record)]
    return total


def _size(value: Any) -> int:
    if isinstance(value, Array):
        return len(value.data)
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str | bytes) else 8


def _numbers(content: RecordDict) -> Metrics:
    """The numbers among a reply's metrics, alone or in lists; older clients' stand in a config."""
    found: Metrics = {}
    for name, record in content.items():
        if isinstance(record, MetricRecord) or (isinstance(record, ConfigRecord) and name.endswith("res.metrics")):
            for key, value in record.items():
                if _is_number(value):
                    found[key] = float(value)
                elif isinstance(value, list) and value and all(map(_is_number, value)):
                    found[key] = [float(one) for one in value]
    return found


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _means(replies: list[Metrics]) -> Metrics:
    """By name; of lists place by place, over the replies that have something there; not what says who replies."""
    means: Metrics = {}
    for name in dict.fromkeys(name for reply in replies for name in reply if name not in WEIGHTS):
        if _is_identity(name, replies):
            continue
        pairs = [(_weight(reply), reply[name]) for reply in replies if name in reply]
        alone = [(weight, value) for weight, value in pairs if not isinstance(value, list)]
        lists = [(weight, value) for weight, value in pairs if isinstance(value, list)]
        if (mean := _mean(alone)) is not None:
            means[name] = mean
        elif lists:
            places = range(max(len(values) for _, values in lists))
            found = [_mean([(w, values[place]) for w, values in lists if place < len(values)]) for place in places]
            means[name] = [mean for mean in found if mean is not None]
    return means


def _is_identity(name: str, replies: list[Metrics]) -> bool:
    """Whether whole numbers say who replies, such as `partition-id`, `clientId` or `cid`."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
    if name.lower() not in IDENTITIES and words.isdisjoint(IDENTITY_WORDS):
        return False
    values = (reply[name] for reply in replies if name in reply)
    return all(not isinstance(value, list) and value.is_integer() for value in values)


def _mean(pairs: list[tuple[float, float]]) -> float | None:
    """None where no reply has a weight."""
    total = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / total if total > 0 else None


def _weight(reply: Metrics) -> float:
    found = (reply[name] for name in WEIGHTS if name in reply)
    return next((weight for weight in found if not isinstance(weight, list)), 1.0)
