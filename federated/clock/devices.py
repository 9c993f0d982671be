"""What clients run on: how fast they are, when they are online, how often they fail. For simulations.

All of it is a pure function of (config, seed, client, round, time), worked out for the clients that are asked about: a
population of millions costs nothing until one of them is met.

fleet = Fleet(Devices(), seed=0)
fleet.device(12)                                       # Device(speed=..., down_mbps=..., up_mbps=..., latency_s=...)
fleet.seconds(ids, round, examples, bytes_down, bytes_up)   # how long these clients take, [n]
"""

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from core.randomness import Key, seed_of, uniform
from federated.clock.sampling import Ids, Mask
from federated.clock.trace import Whole, read_trace

Real = NDArray[np.float64]
DAY_S = 86_400
MEGABIT = 125_000  # bytes


@dataclass(frozen=True)
class Constant:
    """The same for every client."""

    kind: Literal["constant"] = "constant"
    value: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.value < math.inf:
            raise ValueError(f"value must be a number of 0 or more, got {self.value}")

    @property
    def lowest(self) -> float:
        """A bound below every draw."""
        return self.value

    def quantile(self, share: float) -> float:
        """What a `share` in (0, 1) of all clients lies below."""
        return self.value


@dataclass(frozen=True)
class LogNormal:
    """exp of a normal distribution: few clients are far faster or slower than most. sigma: of the logarithm."""

    kind: Literal["lognormal"] = "lognormal"
    median: float = 1.0
    sigma: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.median < math.inf:
            raise ValueError(f"median must be a number above 0, got {self.median}")
        if not 0 <= self.sigma <= 5:  # 5: the tenth fastest of a thousand is 100,000 times as fast as the median
            raise ValueError(f"sigma must be in [0, 5], got {self.sigma}")

    @property
    def lowest(self) -> float:
        """A bound below every draw: shares are multiples of 2**-33, at least 6.3 deviations below the median."""
        return self.median * math.exp(-7 * self.sigma)

    def quantile(self, share: float) -> float:
        """What a `share` in (0, 1) of all clients lies below."""
        return self.median * math.exp(self.sigma * NormalDist().inv_cdf(share))


@dataclass(frozen=True)
class Uniform:
    """Anything between low and high, equally likely."""

    kind: Literal["uniform"] = "uniform"
    low: float = 1.0
    high: float = 2.0

    def __post_init__(self) -> None:
        if not self.low >= 0:
            raise ValueError(f"low must be a number of 0 or more, got {self.low}")
        if not self.low <= self.high < math.inf:
            raise ValueError(f"high must be a number of at least low ({self.low}), got {self.high}")

    @property
    def lowest(self) -> float:
        """A bound below every draw."""
        return self.low

    def quantile(self, share: float) -> float:
        """What a `share` in (0, 1) of all clients lies below."""
        return self.low + (self.high - self.low) * share


Distribution = Constant | LogNormal | Uniform


@dataclass(frozen=True)
class Devices:
    """The clients' devices. The numbers that are set here are round ones, about a phone's; measure your own.

    speed: training examples per second. down_mbps, up_mbps: megabits per second. latency_s: what a round takes besides.
    dropout: probability that a client fails in a round. straggle: probability that it trains `slowdown` times as long.
    availability: daily: each client is online for the share `online` of the day, at a time of day of its own; trace:
    as the csv file `trace` says (`federated/clock/trace.py`), whose speeds, where it has them, replace the ones drawn.
    A client that goes offline before its reply has arrived is lost. over_selection: so many times the cohort are
    asked, and the first to reply count. deadline_s: replies that take longer are lost.
    """

    speed: Distribution = field(default_factory=lambda: LogNormal(median=100.0))
    down_mbps: Distribution = field(default_factory=lambda: LogNormal(median=20.0))
    up_mbps: Distribution = field(default_factory=lambda: LogNormal(median=5.0))
    latency_s: Distribution = field(default_factory=lambda: Constant(value=0.1))
    dropout: float = 0.0
    straggle: float = 0.0
    slowdown: float = 4.0
    availability: Literal["always", "daily", "trace"] = "always"
    online: float = 0.5
    trace: str | None = None
    over_selection: float = 1.0
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("speed", "down_mbps", "up_mbps"):
            if not getattr(self, name).lowest > 0:
                raise ValueError(f"{name} must be above 0 for every client, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not 0 <= self.straggle <= 1:
            raise ValueError(f"straggle must be in [0, 1], got {self.straggle}")
        if not 1 <= self.slowdown < math.inf:
            raise ValueError(f"slowdown must be a number of at least 1, got {self.slowdown}")
        if not 1 / DAY_S <= self.online < 1:
            raise ValueError(f"online must be in (0, 1), a share of the day of a second or more, got {self.online}")
        if self.availability == "trace" and self.trace is None:
            raise ValueError("trace must be the path of a csv file where availability is 'trace', got null")
        if self.availability != "trace" and self.trace is not None:
            raise ValueError(f"trace must be null where availability is '{self.availability}', got '{self.trace}'")
        if not 1 <= self.over_selection < math.inf:
            raise ValueError(f"over_selection must be a number of at least 1, got {self.over_selection}")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ValueError(f"deadline_s must be above 0, or null for none, got {self.deadline_s}")


@dataclass(frozen=True)
class Device:
    """One client's: examples per second, megabits per second, seconds that a round takes besides."""

    speed: float
    down_mbps: float
    up_mbps: float
    latency_s: float


class Fleet:
    """The devices of clients 0, 1, 2, ... for one seed; nothing is worked out before it is asked for.

    Raises DataError if the trace cannot be read.
    """

    def __init__(self, devices: Devices, seed: int) -> None:
        self.devices = devices
        self._seed = seed
        self._trace = None if devices.trace is None else read_trace(devices.trace)

    def table(self, ids: Ids) -> dict[str, Real]:
        """The fields of `Device` as columns [n] of the clients `ids` [n]."""
        names = ("speed", "down_mbps", "up_mbps", "latency_s")
        shares = self._shares(ids, len(names), "devices")
        columns = {}
        for name, share in zip(names, shares.T, strict=True):
            distribution = getattr(self.devices, name)
            if self._trace is not None and name in self._trace.speeds:
                columns[name] = self._trace.speeds[name][ids % self._trace.devices]
            else:
                columns[name] = np.array([distribution.quantile(u) for u in share.tolist()], np.float64)
        return columns

    def device(self, client: int) -> Device:
        """One client's device."""
        columns = self.table(np.array([client], np.int64))
        return Device(**{name: float(column[0]) for name, column in columns.items()})

    def seconds(self, ids: Ids, round: int, examples: Real, bytes_down: int, bytes_up: int) -> Real:
        """Seconds [n] from the order to the arrival of the reply, for so many `examples` [n] to train on."""
        own = self.table(ids)
        slower = np.where(self._happens(ids, self.devices.straggle, "straggle", round), self.devices.slowdown, 1.0)
        train = slower * examples / own["speed"]
        receive, send = bytes_down / MEGABIT / own["down_mbps"], bytes_up / MEGABIT / own["up_mbps"]
        return own["latency_s"] + receive + train + send

    def drops(self, ids: Ids, round: int) -> Mask:
        """Which of the clients [n] fail in this round."""
        return self._happens(ids, self.devices.dropout, "dropout", round)

    def left_s(self, ids: Ids, at_s: float) -> Real:
        """For how many seconds each client [n] stays online from now on; 0 if it is not, inf if for ever."""
        if self.devices.availability == "always":
            return np.full(len(ids), math.inf)
        second = math.floor(at_s)
        left: Real = np.maximum(self._window(ids, second)[0] - (at_s - second), 0.0)
        return left

    def opens_s(self, ids: Ids, at_s: float) -> float:
        """The time at which one of the clients [n > 0] is online: now, or the first whole second."""
        if (self.left_s(ids, at_s) > 0).any():
            return at_s
        second = math.floor(at_s)
        return float(second + self._window(ids, second)[1].min())

    def _window(self, ids: Ids, second: int) -> tuple[Whole, Whole]:
        """As `Trace.window`. Whole seconds, so that no rounding can leave the clock standing before an opening."""
        if self._trace is not None:
            return self._trace.window(ids, second)
        phase = (self._shares(ids, 1, "phase")[:, 0] * DAY_S).astype(np.int64)
        at = (second + phase) % DAY_S
        return round(self.devices.online * DAY_S) - at, DAY_S - at

    def _happens(self, ids: Ids, probability: float, *key: Key) -> Mask:
        if not probability:
            return np.zeros(len(ids), np.bool_)
        return self._shares(ids, 1, *key)[:, 0] < probability

    def _shares(self, ids: Ids, count: int, *key: Key) -> Real:
        """Draws [n, count] in (0, 1), a client's own whatever others are asked about."""
        keys = torch.from_numpy(ids) + (seed_of(self._seed, *key) & 0x3FFF_FFFF_FFFF)  # room for any client's number
        shares: Real = uniform(keys, 0, count).numpy()
        return shares + 2.0**-33
