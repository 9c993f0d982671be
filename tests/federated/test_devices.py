"""Devices are pure functions of their address; their shares are as configured; traces are read line by line."""

import math
from pathlib import Path

import numpy as np
import pytest

from core import config
from core.errors import ConfigError, DataError
from federated.clock.devices import DAY_S, Constant, Devices, Fleet, LogNormal, Uniform
from federated.clock.trace import read_trace

MANY = np.arange(20_000)
HEADER = "client,start_s,end_s\n"


def close(share: float, expected: float, count: int = len(MANY)) -> bool:
    return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


def traced(folder: Path, text: str) -> Fleet:
    path = folder / "trace.csv"
    path.write_text(text)
    return Fleet(Devices(availability="trace", trace=str(path)), 0)


def left(fleet: Fleet, clients: list[int], at_s: float) -> list[float]:
    return fleet.left_s(np.array(clients), at_s).tolist()


def test_a_device_is_the_same_whoever_else_is_asked_about() -> None:
    fleet, ids = Fleet(Devices(), 0), np.array([5, 999_999_999, 7, 123_456])
    for i, client in enumerate(ids.tolist()):
        device = fleet.device(client)
        for name, column in fleet.table(ids).items():
            assert getattr(device, name) == column[i]
    assert fleet.device(5) != Fleet(Devices(), 1).device(5)


def test_distributions_have_their_medians_and_bounds() -> None:
    devices = Devices(speed=LogNormal(median=100, sigma=1), down_mbps=Uniform(low=2, high=4), up_mbps=Constant(value=3))
    table = Fleet(devices, 0).table(MANY)
    assert close((table["speed"] < 100).mean(), 0.5)
    assert close((table["speed"] < 100 * math.e).mean(), 0.8413)
    assert close((table["down_mbps"] < 2.5).mean(), 0.25)
    assert table["down_mbps"].min() >= 2 and table["down_mbps"].max() <= 4
    assert set(table["up_mbps"].tolist()) == {3.0}
    assert abs(np.corrcoef(table["speed"], table["down_mbps"])[0, 1]) < 4 / math.sqrt(len(MANY))


def test_a_round_takes_latency_and_both_transfers_and_the_training() -> None:
    devices = Devices(Constant(value=50.0), Constant(value=8.0), Constant(value=2.0), Constant(value=0.5))
    seconds = Fleet(devices, 0).seconds(np.array([0, 1]), 1, np.array([100.0, 0.0]), 3_000_000, 1_000_000)
    assert seconds.tolist() == [0.5 + 3 + 2 + 4, 0.5 + 3 + 0 + 4]


def test_the_share_of_rounds_that_is_slower_is_as_said_and_only_training_is() -> None:
    plain = Devices(latency_s=Constant(value=1.0))
    slower = Devices(latency_s=Constant(value=1.0), straggle=0.2, slowdown=3.0)
    work = np.full(len(MANY), 10.0)
    before, after = (Fleet(d, 0).seconds(MANY, 4, work, 0, 0) - 1 for d in (plain, slower))
    ratio = np.round(after / before, 6)
    assert set(ratio.tolist()) == {1.0, 3.0} and close((ratio == 3).mean(), 0.2)


def test_dropout_has_its_share_and_differs_between_rounds() -> None:
    fleet = Fleet(Devices(dropout=0.3), 0)
    first, second = fleet.drops(MANY, 1), fleet.drops(MANY, 2)
    assert close(first.mean(), 0.3) and close((first & second).mean(), 0.09)
    assert (fleet.drops(MANY[100:200], 1) == first[100:200]).all()
    assert not Fleet(Devices(), 0).drops(MANY, 1).any()


def test_daily_clients_are_online_for_their_share_of_every_day_at_times_of_their_own() -> None:
    fleet = Fleet(Devices(availability="daily", online=0.25), 0)
    for at in (0.0, 40_000.5, 10 * DAY_S + 12.25):
        assert close((fleet.left_s(MANY, at) > 0).mean(), 0.25)
    one = np.array([17])
    hours = [fleet.left_s(one, float(s))[0] > 0 for s in range(0, DAY_S, 60)]
    assert abs(sum(hours) - 0.25 * len(hours)) <= 1
    assert sum(a != b for a, b in zip(hours, hours[1:] + hours[:1], strict=True)) == 2  # one stretch of the day
    assert (fleet.left_s(MANY, 123.0) == fleet.left_s(MANY, 123.0 + DAY_S)).all()


def test_a_client_stays_online_exactly_as_long_as_is_said() -> None:
    fleet = Fleet(Devices(availability="daily", online=0.1), 0)
    one = np.array([3])
    opens = fleet.opens_s(one, fleet.left_s(one, 0.0)[0])
    assert fleet.left_s(one, opens)[0] == round(0.1 * DAY_S)
    assert fleet.left_s(one, opens + 0.75)[0] == round(0.1 * DAY_S) - 0.75
    assert fleet.left_s(one, opens + round(0.1 * DAY_S))[0] == 0
    assert fleet.left_s(one, opens - 0.001)[0] == 0


def test_clients_that_are_always_there_stay_for_ever() -> None:
    assert left(Fleet(Devices(), 0), [0, 5], 1e9) == [math.inf, math.inf]


def test_a_trace_says_who_is_online_and_repeats_over_clients_and_time(tmp_path: Path) -> None:
    fleet = traced(tmp_path, HEADER + "b,10,20\n\na,0,5\nb,30,40\n")
    assert left(fleet, [0, 1], 0.0) == [0, 5]
    assert left(fleet, [0, 1], 12.5) == [7.5, 0]
    assert left(fleet, [0, 1], 20.0) == [0, 0]
    assert left(fleet, [0, 1], 39.0) == [1, 0]
    assert left(fleet, [2, 3, 1_000_000], 412.5) == [7.5, 0, 7.5]
    assert fleet.opens_s(np.array([0, 1]), 5.5) == 10
    assert fleet.opens_s(np.array([0, 1]), 12.25) == 12.25
    assert fleet.opens_s(np.array([0]), 20.0) == 30
    assert fleet.opens_s(np.array([1]), 5.0) == 40


def test_intervals_that_meet_are_one_also_over_the_end_of_the_period(tmp_path: Path) -> None:
    fleet = traced(tmp_path, HEADER + "a,80,100\na,0,10\na,30,40\na,40,50\na,45,48\n")
    assert left(fleet, [0, 0, 0], 35.0) == [15, 15, 15]
    assert left(fleet, [0], 95.0) == [15]
    assert left(fleet, [0], 195.0) == [15]


def test_the_speeds_of_a_trace_replace_the_drawn_ones_column_by_column(tmp_path: Path) -> None:
    fleet = traced(tmp_path, "client,start_s,end_s,up_mbps,speed\na,0,5,1.5,100\nb,0,5,2,7\na,7,8,1.5,100\n")
    drawn = Fleet(Devices(), 0)
    for client, speed, up in ((0, 100.0, 1.5), (3, 7.0, 2.0)):
        device = fleet.device(client)
        assert (device.speed, device.up_mbps) == (speed, up)
        assert device.down_mbps == drawn.device(client).down_mbps


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "line 1 must name the columns client, start_s, end_s"),
        ("client,start_s\n", "line 1 must name"),
        ("client,start_s,end_s,ram\n", "line 1 must name"),
        (HEADER, "has no line below"),
        (HEADER + "a,0,5\na,7\n", "line 3 has 2 cells, line 1 has 3"),
        (HEADER + "a,0,5\n\na,7,8.5\n", "line 4: start_s and end_s must be whole seconds, got '7' and '8.5'"),
        (HEADER + "a,9,9\n", "line 2: must have 0 <= start_s < end_s"),
        (HEADER + "a,-1,9\n", "line 2: must have 0 <= start_s < end_s"),
        ("client,start_s,end_s,speed\na,0,9,0\n", "line 2: speed must be a number above 0, got '0'"),
        ("client,start_s,end_s,speed\na,0,9,fast\n", "line 2: speed must be a number above 0, got 'fast'"),
        ("client,start_s,end_s,speed\na,0,9,1\na,10,12,2\n", "line 3 gives client 'a' other speeds"),
    ],
)
def test_a_bad_line_of_a_trace_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_trace(str(path))
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: cannot be read"):
        read_trace(str(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"speed": {"kind": "constant", "value": 0}}, "speed: must be above 0"),
        ({"up_mbps": {"kind": "uniform", "low": 0, "high": 1}}, "up_mbps: must be above 0"),
        ({"speed": {"kind": "lognormal", "median": -1}}, "speed.median: must be a number above 0"),
        ({"speed": {"kind": "lognormal", "sigma": -1}}, "speed.sigma: must be in"),
        ({"down_mbps": {"kind": "uniform", "low": 3, "high": 1}}, "down_mbps.high: must be a number of at least low"),
        ({"latency_s": {"kind": "constant", "value": -1}}, "latency_s.value: must be a number of 0 or more"),
        ({"dropout": 1}, "dropout: must be in"),
        ({"straggle": 1.5}, "straggle: must be in"),
        ({"slowdown": 0.5}, "slowdown: must be a number of at least 1"),
        ({"availability": "daily", "online": 0}, "online: must be in"),
        ({"availability": "trace"}, "trace: must be the path"),
        ({"trace": "x.csv"}, "trace: must be null"),
        ({"over_selection": 0.9}, "over_selection: must be a number of at least 1"),
        ({"deadline_s": 0}, "deadline_s: must be above 0"),
    ],
)
def test_a_number_out_of_range_is_named_by_its_key(changes: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(Devices, changes)
    assert said in str(caught.value)


def test_a_config_of_devices_comes_back_unchanged() -> None:
    devices = Devices(speed=Uniform(low=1, high=3), availability="daily", deadline_s=30.0, over_selection=1.3)
    assert config.parse(Devices, config.dump(devices)) == devices
