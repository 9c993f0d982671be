"""Cohorts are uniform, addressed by seed and round, and cost no more than their size."""

import numpy as np
import pytest

from core.errors import ConfigError
from federated.clock.sampling import Ids, Mask, cohort


def odd(ids: Ids) -> Mask:
    return ids % 2 == 1


@pytest.mark.parametrize("available", [None, odd])
def test_a_cohort_is_a_function_of_seed_and_round_alone(available) -> None:
    first = cohort(0, 1, 100, 10, available)
    assert first == cohort(0, 1, 100, 10, available)
    assert len({first, cohort(0, 2, 100, 10, available), cohort(1, 1, 100, 10, available)}) == 3


@pytest.mark.parametrize("clients, count", [(10, 10), (10, 1), (1000, 30), (1_000_000, 30)])
def test_a_cohort_holds_different_clients_of_the_population(clients: int, count: int) -> None:
    chosen = cohort(0, 1, clients, count)
    assert len(set(chosen)) == count and set(chosen) <= set(range(clients))


@pytest.mark.parametrize("available", [None, odd])
def test_every_available_client_is_chosen_equally_often_and_at_every_place(available) -> None:
    rounds, clients, count = 4000, 12, 3
    able = clients if available is None else clients // 2
    chosen = np.array([cohort(0, r, clients, count, available) for r in range(rounds)])
    for place in range(count):
        times = np.bincount(chosen[:, place], minlength=clients)
        expected = np.zeros(clients)
        expected[[c for c in range(clients) if available is None or c % 2]] = rounds / able
        assert (np.abs(times - expected) <= 4.5 * np.sqrt(expected)).all()


def test_where_all_are_available_the_answer_is_that_without_the_question() -> None:
    assert cohort(3, 4, 500, 20, lambda ids: np.ones(len(ids), np.bool_)) == cohort(3, 4, 500, 20)


def test_only_available_clients_are_chosen_and_all_of_them_if_they_are_too_few() -> None:
    rare = {7, 123_456, 999_999}
    chosen = cohort(0, 1, 1_000_000, 5, lambda ids: np.isin(ids, list(rare)))
    assert set(chosen) == rare and len(chosen) == 3
    assert cohort(0, 1, 1000, 5, lambda ids: ids < 0) == ()


def test_a_cohort_of_a_million_clients_looks_at_few_of_them() -> None:
    asked = []

    def half(ids: Ids) -> Mask:
        asked.extend(ids.tolist())
        return ids % 2 == 0

    assert len(cohort(0, 1, 1_000_000, 100, half)) == 100
    assert len(asked) <= 100 + 400 + 1600


def test_a_cohort_larger_than_the_population_is_refused() -> None:
    with pytest.raises(ConfigError, match="cohort: 11 clients a round, but there are 10"):
        cohort(0, 1, 10, 11)
