"""The pool of Ray actors, held to the contract of all pools of processes, and what only it does: machines."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.pool import RayPool, ray_pool
from cluster.session import session
from core.errors import ConfigError, ResourceError
from tests.crew_contract import CrewContract, Make
from tests.pool_contract import results
from tests.pool_work import square

# Ray warns about its own deprecated settings in this process, which starts it
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


@pytest.fixture(scope="module")
def make() -> Iterator[Make]:
    with session(None, 2):
        yield functools.partial(RayPool, cpus_per_worker=0.5)


class TestRayPool(CrewContract):
    """The contract, and what goes wrong beside a pool that holds one of the two processors."""

    @staticmethod
    def home(pool: RayPool) -> str:
        return "plasma"  # Ray's store, not a worker's own memory

    @staticmethod
    def holds(pool: RayPool) -> bool:
        return any(member.hand.holds for member in pool.members)

    def test_a_pool_without_a_free_place_says_so(self, pool: RayPool, make: Make) -> None:
        assert results(pool, square, {1: 1}) == {1: 1}  # it is there
        with (
            make(1, cpus_per_worker=2, start_timeout_s=0.5) as waiting,
            pytest.raises(ResourceError, match=r"none could start within 0\.5 s; the cluster has 1 CPUs"),
        ):
            list(waiting.run(square, {1: 1}))


def test_a_run_goes_on_with_the_workers_that_the_cluster_has_room_for(make: Make) -> None:
    with make(9) as crowded:
        assert results(crowded, square, {i: i for i in range(10)}) == {i: i * i for i in range(10)}
        crowded.resize(1)
        assert results(crowded, square, {1: 3}) == {1: 9}


@pytest.mark.parametrize(
    "needs, said",
    [
        ({"cpus_per_worker": 999.0}, r"each needs 999 CPU and .* has over 2; lower cpus_per_worker"),
        ({"gpus_per_worker": 7.0}, r"each needs 7 GPU .* lower gpus_per_worker"),
        ({"resources": {"tpu": 1.0}}, r"each needs 1 tpu .* has over 0; lower resources\.tpu"),
    ],
)
def test_a_worker_that_no_node_could_hold_is_refused(make: Make, needs: dict[str, Any], said: str) -> None:
    with pytest.raises(ResourceError, match=said):
        make(1, **needs)


def test_less_than_nothing_of_a_resource_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="each needs -1 tpu; give a share of one or a whole number"):
        make(1, resources={"tpu": -1.0})


def test_less_than_one_worker_is_refused_before_ray_starts() -> None:
    with pytest.raises(ConfigError, match="workers: there must be at least one, not -1"), ray_pool(-1):
        pass
