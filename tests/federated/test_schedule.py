"""Plans worked by hand, and what must hold of all plans, synchronous and asynchronous."""

import functools
import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ConfigError
from federated.clock.devices import Constant, Devices, LogNormal
from federated.clock.schedule import Asynchronous, Job, Plan, Schedule

FREE = {"down_mbps": Constant(value=1.0), "up_mbps": Constant(value=1.0), "latency_s": Constant(value=0.0)}
EVEN = Devices(speed=Constant(value=1.0), **FREE)  # a client takes as many seconds as its number says, plus one
VARIED = Devices(speed=LogNormal(median=50, sigma=1.0), dropout=0.1, straggle=0.2, deadline_s=6.0)


def seconds(client: int) -> float:
    return client + 1.0


def by_hand(clients: int, rounds: int, devices: Devices | None = EVEN, **more) -> list[Plan]:
    more = {"cohort": clients, "seed": 0, "work": seconds} | more
    return list(Schedule(clients=clients, rounds=rounds, devices=devices, **more).plans())


def buffered(devices: Devices | None = VARIED, **more) -> Schedule:
    sizes = {"clients": 60, "cohort": 1, "rounds": 24, "seed": 0, "work": lambda client: 100.0 + client} | more
    return Schedule(devices=devices, **{"asynchronous": Asynchronous(5, 20)} | sizes)


def waiting(devices: Devices | None = VARIED, **more) -> Schedule:
    return buffered(devices, cohort=8, asynchronous=None, **more)


def all_jobs(plans: list[Plan]) -> list[Job]:
    return [job for plan in plans for job in plan.jobs]


def lost(plan: Plan) -> dict[int, str]:
    return {one.client: one.reason for one in plan.lost}


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_three_clients_in_step_wait_for_the_slowest() -> None:
    plans = by_hand(3, 2)
    assert [(p.begins_s, p.ends_s, p.arrivals, p.lost) for p in plans] == [(0, 3, 3, ()), (3, 6, 3, ())]
    assert plans[1].jobs == tuple(Job(c, 2, 2, 3.0, 3.0 + c + 1) for c in range(3))


def test_three_clients_out_of_step_by_hand() -> None:
    # seconds 1, 2, 3; two at work, a step after every reply, and whoever is free starts
    plans = by_hand(3, 4, asynchronous=Asynchronous(buffer=1, concurrency=2))
    jobs = sorted(all_jobs(plans), key=lambda job: job.counts_in)
    now, at_work, version = 0.0, {}, 1
    for job in jobs:  # what must come next is worked out from who was seen to start
        at_work |= {j.client: j for j in jobs if j.round == version}
        first = min(at_work.values(), key=lambda j: (j.ends_s, j.round, j.client))
        assert job == first and job.counts_in == version and job.ends_s == job.begins_s + seconds(job.client)
        now, version = job.ends_s, version + 1
        del at_work[job.client]
        assert plans[version - 2].ends_s == now
    assert [plan.arrivals for plan in plans] == [1, 1, 1, 1]


def test_all_clients_at_work_out_of_step_by_hand() -> None:
    # client 0 ends at 1, 2, 3, 4; client 1 at 2, 4; client 2 at 3: a step after every two replies
    plans = by_hand(3, 3, asynchronous=Asynchronous(buffer=2, concurrency=3))
    assert plans == [
        Plan(1, (Job(0, 1, 1, 0.0, 1.0), Job(1, 1, 1, 0.0, 2.0), Job(2, 1, 2, 0.0, 3.0)), (), 0.0, 2.0, 2),
        # client 0 had begun with the first weights already: it waits from 1 to 2
        Plan(2, (Job(0, 2, 2, 2.0, 3.0), Job(1, 2, 3, 2.0, 4.0)), (), 2.0, 3.0, 2),
        Plan(3, (Job(0, 3, 3, 3.0, 4.0),), (), 3.0, 4.0, 2),
    ]


def test_replies_at_the_same_time_count_by_age_and_then_by_number() -> None:
    plans = by_hand(4, 2, work=lambda client: 1.0, asynchronous=Asynchronous(buffer=2, concurrency=4))
    assert [(j.client, j.counts_in) for j in plans[0].jobs] == [(0, 1), (1, 1), (2, 2), (3, 2)]
    assert plans[1].jobs == ()


def test_without_devices_everybody_replies_in_no_time() -> None:
    plans = by_hand(100, 3, devices=None, cohort=7)
    assert [(p.begins_s, p.ends_s, len(p.jobs), p.lost) for p in plans] == [(0, 0, 7, ())] * 3
    assert plans == by_hand(100, 3, devices=Devices(latency_s=Constant(value=0.0)), cohort=7, work=lambda client: 0)


def test_over_selection_keeps_the_fastest_and_does_not_wait_for_the_others() -> None:
    (plan,) = by_hand(6, 1, cohort=4, devices=replace(EVEN, over_selection=1.5))
    assert [job.client for job in plan.jobs] == [0, 1, 2, 3] and plan.ends_s == 4
    assert lost(plan) == {4: "too late", 5: "too late"}


@pytest.mark.parametrize("share, asked", [(1.0, 100), (1.1, 110), (1.101, 111), (9.0, 200)])
def test_the_number_asked_is_rounded_up_and_at_most_everybody(share: float, asked: int) -> None:
    (plan,) = by_hand(200, 1, cohort=100, devices=replace(EVEN, over_selection=share))
    assert len(plan.jobs) + len(plan.lost) == asked


def test_a_deadline_ends_the_round_without_the_slow() -> None:
    plans = by_hand(5, 2, devices=replace(EVEN, deadline_s=3.5))
    assert [job.client for job in plans[1].jobs] == [0, 1, 2]
    assert lost(plans[1]) == {3: "too late", 4: "too late"}
    assert (plans[1].begins_s, plans[1].ends_s) == (3.5, 7.0)


def test_a_reply_at_the_deadline_counts() -> None:
    (plan,) = by_hand(3, 1, devices=replace(EVEN, deadline_s=3.0))
    assert len(plan.jobs) == 3 and plan.ends_s == 3


def test_a_round_in_which_nobody_arrives_passes() -> None:
    plans = by_hand(5, 3, devices=replace(EVEN, deadline_s=0.5))
    assert [(p.jobs, p.arrivals, p.ends_s) for p in plans] == [((), 0, 0.5), ((), 0, 1.0), ((), 0, 1.5)]


def test_with_a_deadline_missing_replies_are_waited_for_until_then() -> None:
    plans = by_hand(6, 30, devices=replace(EVEN, dropout=0.1, deadline_s=100.0))
    assert {plan.ends_s - plan.begins_s for plan in plans if plan.lost} == {100}
    assert {plan.ends_s - plan.begins_s for plan in plans if not plan.lost} == {6}


def test_without_a_deadline_a_round_ends_when_the_last_missing_reply_was_due() -> None:
    for plan in by_hand(6, 30, devices=replace(EVEN, dropout=0.5)):
        assert plan.ends_s == plan.begins_s + 6
        assert len(plan.jobs) + len(plan.lost) == 6 and set(lost(plan).values()) <= {"dropped out"}


def test_a_deadline_gives_up_clients_that_work_out_of_step() -> None:
    plans = by_hand(4, 6, devices=replace(EVEN, deadline_s=2.5), asynchronous=Asynchronous(buffer=1, concurrency=4))
    assert {job.client for job in all_jobs(plans)} == {0, 1}
    assert {one.client for plan in plans for one in plan.lost} == {2, 3}
    assert all(one.ends_s == one.begins_s + 2.5 and one.reason == "too late" for p in plans for one in p.lost)


# --- availability ----------------------------------------------------------------------------------------------------


def online(folder: Path, lines: str) -> Devices:
    path = folder / "trace.csv"
    path.write_text("client,start_s,end_s\n" + lines)
    return replace(EVEN, availability="trace", trace=str(path))


@pytest.mark.parametrize("asynchronous", [None, Asynchronous(buffer=1, concurrency=1)])
def test_the_server_waits_until_somebody_is_online(tmp_path: Path, asynchronous: Asynchronous | None) -> None:
    devices = online(tmp_path, "a,10,18\nb,50,58\nc,99,100\n")
    plans = by_hand(2, 3, devices=devices, work=lambda client: 8.0, asynchronous=asynchronous)
    assert [job.client for job in all_jobs(plans)] == [0, 1, 0]
    assert [job.begins_s for job in all_jobs(plans)] == [10, 50, 110]
    assert [plan.begins_s for plan in plans] == [0, 18, 58]


@pytest.mark.parametrize("asynchronous", [None, Asynchronous(buffer=2, concurrency=3)])
def test_a_client_that_goes_offline_before_its_reply_is_lost(tmp_path: Path, asynchronous: Asynchronous | None) -> None:
    (plan,) = by_hand(3, 1, devices=online(tmp_path, "a,0,100\nb,0,100\nc,0,2\n"), asynchronous=asynchronous)
    if asynchronous is None:
        assert lost(plan) == {2: "not available"} and plan.ends_s == 3
    assert [job.client for job in plan.jobs] == [0, 1]


def test_who_was_not_asked_is_not_waited_for(tmp_path: Path) -> None:
    devices = replace(online(tmp_path, "a,0,50\nb,0,50\nc,50,100\n"), deadline_s=40.0)
    (plan,) = by_hand(3, 1, devices=devices)
    assert [job.client for job in plan.jobs] == [0, 1] and not plan.lost and plan.ends_s == 2


def test_out_of_step_only_clients_that_are_online_start(tmp_path: Path) -> None:
    devices = online(tmp_path, "a,0,500\nb,500,1000\n")
    plans = by_hand(10, 100, devices=devices, work=lambda client: 9.0, asynchronous=Asynchronous(2, 4))
    assert plans[-1].ends_s > 400
    for job in all_jobs(plans):
        assert job.client % 2 == (job.begins_s % 1000 >= 500)


def test_a_round_ends_with_fewer_replies_when_nobody_is_left_who_could_start() -> None:
    plans = by_hand(
        4, 50, devices=replace(EVEN, dropout=0.4), asynchronous=Asynchronous(buffer=4, concurrency=4), seed=1
    )
    assert len(plans) == 50
    assert {plan.arrivals for plan in plans} > {1, 2}
    assert all(plan.arrivals + len(plan.lost) == 4 for plan in plans)


# --- what holds of all plans -----------------------------------------------------------------------------------------

EVERY = [
    waiting(),
    waiting(replace(VARIED, over_selection=1.4)),
    waiting(replace(VARIED, availability="daily", online=0.3)),
    waiting(None),
    buffered(),
    buffered(replace(VARIED, availability="daily", online=0.3)),
    buffered(None),
    buffered(clients=21, asynchronous=Asynchronous(20, 21)),
]


@functools.cache
def planned(schedule: Schedule) -> list[Plan]:
    return list(schedule.plans())


@pytest.mark.parametrize("schedule", EVERY)
def test_there_is_one_plan_for_every_round_and_the_clock_never_goes_back(schedule: Schedule) -> None:
    plans = planned(schedule)
    assert [plan.round for plan in plans] == list(range(1, 25))
    assert plans[0].begins_s == 0
    assert all(a.ends_s == b.begins_s and a.begins_s <= a.ends_s for a, b in itertools.pairwise(plans))


@pytest.mark.parametrize("schedule", EVERY)
def test_every_job_counts_once_and_the_totals_are_the_arrivals(schedule: Schedule) -> None:
    plans = planned(schedule)
    jobs = all_jobs(plans)
    assert all(job.round == plan.round for plan in plans for job in plan.jobs)
    assert len({(job.client, job.round) for job in jobs}) == len(jobs)
    assert Counter(job.counts_in for job in jobs) == Counter({p.round: p.arrivals for p in plans if p.arrivals})
    for job in jobs:
        assert job.round <= job.counts_in <= schedule.rounds
        assert plans[job.round - 1].begins_s <= job.begins_s <= plans[job.round - 1].ends_s
        assert plans[job.counts_in - 1].begins_s <= job.ends_s <= plans[job.counts_in - 1].ends_s


@pytest.mark.parametrize("schedule", EVERY)
def test_nobody_is_at_work_twice_at_once_nor_counts_and_is_lost_in_one_round(schedule: Schedule) -> None:
    plans = planned(schedule)
    for plan in plans:
        assert not {job.client for job in plan.jobs} & set(lost(plan))
    for _, spans in itertools.groupby(
        sorted(all_jobs(plans), key=lambda j: (j.client, j.begins_s)), lambda j: j.client
    ):
        assert all(a.ends_s <= b.begins_s for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize("schedule", EVERY)
def test_plans_from_a_later_round_are_the_tail_of_all(schedule: Schedule) -> None:
    plans = planned(schedule)
    for start in (2, 24):
        assert list(schedule.plans(start)) == plans[start - 1 :]


def test_out_of_step_as_many_as_said_are_at_work_at_any_time() -> None:
    plans = list(buffered(replace(VARIED, deadline_s=None), rounds=60).plans())
    spans = [(one.begins_s, one.ends_s) for plan in plans for one in (*plan.jobs, *plan.lost)]
    for moment in (plans[15].ends_s * i / 50 for i in range(50)):  # at the end some are in no plan
        assert sum(begins <= moment < ends for begins, ends in spans) == 20


def test_out_of_step_replies_are_stale_by_about_concurrency_over_buffer() -> None:
    for devices in (None, replace(VARIED, dropout=0.0, deadline_s=None)):
        jobs = [j for j in all_jobs(list(buffered(devices, clients=500, rounds=100).plans())) if 25 <= j.round < 75]
        assert 3 < sum(job.counts_in - job.round for job in jobs) / len(jobs) < 5


def test_out_of_step_all_clients_have_the_same_chance() -> None:
    jobs = all_jobs(list(buffered(None, clients=400, rounds=80).plans()))
    assert len({job.client for job in jobs}) > 0.9 * 400 * (1 - math.exp(-len(jobs) / 400))
    assert max(Counter(job.client for job in jobs).values()) < 9  # of a mean of 1


def test_out_of_step_the_server_steps_sooner_than_in_step() -> None:
    devices = Devices(speed=LogNormal(median=50, sigma=1.5))
    together = list(waiting(devices).plans())
    apart = list(buffered(devices, asynchronous=Asynchronous(8, 8)).plans())
    assert apart[-1].ends_s < together[-1].ends_s


def test_a_plan_comes_before_the_end_of_the_run_is_planned() -> None:
    worked = []
    plans = buffered(rounds=10**9, work=lambda client: worked.append(client) or 100.0).plans()
    assert next(plans).round == 1 and len(worked) < 1000


# --- what plans depend on --------------------------------------------------------------------------------------------


def test_who_is_asked_in_step_does_not_depend_on_devices() -> None:
    free, varied = list(waiting(None).plans()), list(waiting(VARIED).plans())
    for a, b in zip(free, varied, strict=True):
        assert {job.client for job in a.jobs} == {job.client for job in b.jobs} | set(lost(b))


def test_the_seed_changes_plans_and_the_number_of_rounds_does_not() -> None:
    for make in (waiting, buffered):
        assert list(make(seed=1).plans()) != list(make().plans())
        longer, shorter = list(make(rounds=40).plans()), list(make().plans())
        assert [(p.ends_s, p.arrivals) for p in longer[:24]] == [(p.ends_s, p.arrivals) for p in shorter]
        assert longer[:12] == shorter[:12]


def test_bytes_take_time() -> None:
    (plan,) = by_hand(1, 1, bytes_down=250_000, bytes_up=375_000)
    assert plan.ends_s == 1 + 2 + 3


def test_clients_drop_out_as_often_as_said() -> None:
    plans = list(waiting(replace(EVEN, dropout=0.2), rounds=400).plans())
    share = sum(len(plan.lost) for plan in plans) / (400 * 8)
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / (400 * 8))


@pytest.mark.parametrize("asynchronous", [None, Asynchronous(10, 100)])
def test_a_million_clients_are_not_looked_at(asynchronous: Asynchronous | None) -> None:
    worked: list[int] = []
    schedule = Schedule(
        1_000_000, 10, 5, 0, lambda client: worked.append(client) or 100.0, 0, 0, Devices(), asynchronous
    )
    assert len(list(schedule.plans())) == 5
    assert len(worked) <= 200


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"cohort": 61, "asynchronous": None}, "cohort: must be between 1 and the number of clients (60), got 61"),
        ({"asynchronous": Asynchronous(5, 61)}, "strategy.concurrency: must be between 1 and"),
        ({"asynchronous": Asynchronous(61, 5)}, "strategy.buffer: must be between 1 and"),
        ({"devices": Devices(over_selection=1.3)}, "devices.over_selection: must be 1"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(changes: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        buffered(**changes)
    assert said in str(caught.value)
