"""What comes back from clients, and how it is let in: read, inspected, and added to the sums of the round it counts in.

In a simulation a worker does this for its chunk of clients, in a deployment the server does it for every message.
"""

import math
import traceback
from dataclasses import dataclass, field, replace

from core.errors import HanseError
from core.population.frame import Frame
from federated.exchange import Reply, Total, Vectors, collects
from federated.inspection import Expected, fault
from federated.run import FederateRun
from federated.transforms.chain import decode


@dataclass(frozen=True)
class Work:
    """One client's part in a round: in which round it counts, and what the client kept from before."""

    client: int
    counts_in: int
    mine: Vectors = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What a server learns of one client's work beside its reply; `fault` says why the reply does not count.

    loss: the mean of its steps; norm: of its update's trainable part; trace: of an exception, for people.
    """

    client: int
    loss: float = math.nan
    examples: int = 0
    norm: float = math.nan
    bytes_up: int = 0
    fault: str | None = None
    trace: str = ""

    @classmethod
    def failed(cls, client: int, error: BaseException) -> "Told":
        """Of a client whose work raised this. Call it while the error is being handled."""
        first = next(iter(str(error).strip().splitlines()), "")
        said = first if isinstance(error, HanseError) else f"{type(error).__name__}: {first}"
        return cls(client, fault=said, trace=traceback.format_exc())

    @property
    def reason(self) -> dict[str, str]:
        """Why it failed, as fields of an event."""
        return {"reason": str(self.fault), **({"traceback": self.trace} if self.trace else {})}


@dataclass(frozen=True)
class Sent:
    """A client's answer: its reply as it goes over the wire (None if it failed), and what the client keeps."""

    told: Told
    reply: Reply | None = None
    kept: Vectors = field(default_factory=dict)


@dataclass
class Partial:
    """What a chunk of clients gives: sums by the round they count in (or the replies themselves, where they are
    collected), what is told of each client, and what each of them keeps."""

    totals: dict[int, Total] = field(default_factory=dict)
    replies: list[Reply] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    kept: dict[int, Vectors] = field(default_factory=dict)


@dataclass(frozen=True)
class Intake:
    """The server's side of replies, for one run."""

    run: FederateRun
    frame: Frame
    expected: Expected

    def take(self, partial: Partial, work: Work, round: int, sent: Sent) -> None:
        """Lets a client's answer in: into the sums if it is good, else only into what is told."""
        read, wrong = (None, sent.told.fault) if sent.reply is None else self.read(sent.reply)
        partial.told.append(replace(sent.told, fault=wrong))
        if read is None:
            return
        if sent.kept:  # of a reply that does not count the client keeps nothing either: both sides stay in step
            partial.kept[work.client] = sent.kept
        read = self.run.strategy.receive(read, self.frame)
        read = replace(read, weight=read.weight * self.run.strategy.discount(work.counts_in - round))
        if must_collect(self.run):
            partial.replies.append(read)
        else:
            partial.totals.setdefault(work.counts_in, Total()).add(read)

    def read(self, sent: Reply) -> tuple[Reply | None, str | None]:
        """A reply through the transforms' server halves, and inspected; or (None, what is wrong with it)."""
        try:
            read = decode(self.run.transforms, sent, self.frame)
        except ValueError as error:
            return None, str(error)
        wrong = fault(read, self.expected)
        return (None, wrong) if wrong else (read, None)


def must_collect(run: FederateRun) -> bool:
    """Whether the server needs every reply by itself: for its strategy, or because attackers look at all of them."""
    return collects(run.strategy) or (run.attack is not None and run.attack.is_colluding)
