"""Sums in one fixed order, and what clients keep."""

import itertools
from pathlib import Path

import pytest
import torch

from core.randomness import generator, numpy_generator
from federated.exchange import UPDATE, Reply, Total
from federated.folding import Folding, Totals
from federated.keeping import Keeping


def totals(number: int) -> Totals:
    found = Total()
    found.add(Reply(number, 1.0 + number / 7, {UPDATE: torch.randn(5, generator=generator("folding", number))}))
    return {1: found}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_any_order_gives_the_same_bits(count: int) -> None:
    orders = (
        itertools.permutations(range(count))
        if count <= 5
        else [list(numpy_generator("orders", i).permutation(count)) for i in range(20)]
    )
    seen = set()
    for order in orders:
        folding = Folding(count)
        for number in order:
            folding.take(int(number), totals(int(number)))
        total = folding.result()[1]
        assert total.count == count and total.weight == pytest.approx(sum(1 + i / 7 for i in range(count)))
        seen.add((tuple(total.sums[UPDATE].tolist()), total.weight))
    assert len(seen) == 1


def test_only_a_few_sums_wait() -> None:
    folding = Folding(64)
    for number in range(64):
        folding.take(number, totals(number))
        assert len(folding.waiting) <= 7
    assert len(folding.waiting) == 1


def test_sums_of_different_rounds_stay_apart() -> None:
    folding = Folding(3)
    for number, rounds in enumerate([(1, 2), (2,), (1, 3)]):
        folding.take(number, {round: totals(number)[1] for round in rounds})
    found = folding.result()
    assert {round: total.count for round, total in found.items()} == {1: 2, 2: 2, 3: 1}


def test_a_round_without_chunks_has_no_sums() -> None:
    assert Folding(0).result() == {}


def vector(value: float) -> dict[str, torch.Tensor]:
    return {"strategy.control": torch.full((3,), value)}


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_client_gets_what_it_kept_last(tmp_path: Path, on_disk: bool) -> None:
    keeping = Keeping(tmp_path / "clients" if on_disk else None)
    assert keeping.get(4) == {}
    keeping.put(4, 1, vector(1.0))
    keeping.put(4, 3, vector(3.0))
    assert torch.equal(keeping.get(4)["strategy.control"], torch.full((3,), 3.0))


def test_going_back_forgets_what_came_after(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path / "clients")
    for round in (1, 2, 5):
        keeping.put(7, round, vector(round))
    keeping.put(8, 5, vector(5.0))
    again = Keeping(tmp_path / "clients")
    again.rewind(4)
    assert float(again.get(7)["strategy.control"][0]) == 2.0 and again.get(8) == {}
    assert not list((tmp_path / "clients").glob("000008-*"))


def test_what_no_checkpoint_needs_is_removed(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path / "clients")
    for round in range(1, 7):
        keeping.put(7, round, vector(round))
    keeping.settle(4)
    left = sorted(int(file.stem.partition("-")[2]) for file in (tmp_path / "clients").iterdir())
    assert left == [4, 5, 6], "the checkpoint of round 4 is still good to go back to"


def test_half_a_file_of_a_killed_server_is_not_read(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path / "clients")
    keeping.put(1, 1, vector(1.0))
    (tmp_path / "clients" / ".tmp-000001-000002.safetensors").write_bytes(b"half")
    assert float(Keeping(tmp_path / "clients").get(1)["strategy.control"][0]) == 1.0


def test_what_clients_keep_on_the_disk_is_for_this_user_alone(tmp_path: Path) -> None:
    Keeping(tmp_path / "clients").put(1, 1, {"strategy.control": torch.ones(1)})
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "clients").iterdir()}
    assert ((tmp_path / "clients").stat().st_mode & 0o777, modes) == (0o700, {0o600})
