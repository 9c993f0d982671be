import errno
import json
import os
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file

from core.errors import DataError, ResourceError
from core.storage import atomic, checkpoint
from core.storage.checkpoint import Checkpointer, Snapshot, load, load_best, load_latest

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def snapshot(step: int) -> Snapshot:
    weight = torch.arange(12, dtype=torch.float32).view(3, 4) + step
    return Snapshot(step, {"model": {"w": weight}, "optimizer": {"w.exp_avg": weight / 3}}, {"best": 0.1 * step})


def steps(directory) -> list[int]:
    return sorted(int(path.name[5:]) for path in directory.glob("step-*"))


def filled(directory, *numbers: int, **policy) -> None:
    with Checkpointer(directory, **{"keep_last": 9, **policy}) as checkpoints:
        for step in numbers:
            checkpoints.save(snapshot(step))


def strange_tensors() -> dict[str, torch.Tensor]:
    bits = torch.arange(-60, 60, dtype=torch.int8)
    dtypes = checkpoint._DTYPES.keys() - {torch.bool}
    tensors = {str(dtype): bits.view(torch.uint8).repeat(8).view(dtype) for dtype in dtypes}
    tensors["bool"] = torch.tensor([True, False, True])
    tensors["scalar"] = torch.tensor(2.5, dtype=torch.float64)
    tensors["empty"] = torch.empty(0, 3, dtype=torch.bfloat16)
    tensors["transposed"] = torch.randn(5, 7).T
    tensors["strided"] = torch.randn(20)[::3]
    tensors["expanded"] = torch.randn(1, 4).expand(3, 4)
    tensors["special"] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    return tensors


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_every_dtype_and_layout_comes_back_bit_for_bit(tmp_path, asynchronous):
    tensors = strange_tensors()
    state = {"step": 3, "lr": 0.1 + 0.2, "nested": [1, None, {"a": "ö"}], "big": 2**60}
    with Checkpointer(tmp_path, asynchronous=asynchronous) as checkpoints:
        checkpoints.save(Snapshot(3, {"model": tensors, "optimizer": {}}, state))
    loaded, rejected = load_latest(tmp_path)
    assert rejected == ()
    assert (loaded.step, loaded.state, loaded.tensors["optimizer"]) == (3, state, {})
    assert loaded.tensors["model"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        again = loaded.tensors["model"][name]
        assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape), name
        assert as_bytes(again) == as_bytes(tensor), name


def test_the_library_reads_the_file_as_it_was_meant(tmp_path):
    tensors = strange_tensors()
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(Snapshot(1, {"model": tensors}))
    read = load_file(tmp_path / "step-000001" / "model.safetensors")
    assert {name: as_bytes(t) for name, t in read.items()} == {name: as_bytes(t) for name, t in tensors.items()}


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    weight = torch.randn(64, 64)
    group = {"embed": weight, "head": weight, "alias": weight.view(64, 64), "row": weight[0], "turned": weight.T}
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(Snapshot(1, {"model": group}))
    path = tmp_path / "step-000001"
    assert load_file(path / "model.safetensors").keys() == {"embed", "row", "turned"}
    assert json.loads((path / "state.json").read_text())["aliases"] == {"model": {"head": "embed", "alias": "embed"}}
    model = load(path).tensors["model"]
    assert model["head"] is model["embed"] and model["alias"] is model["embed"]
    assert all(torch.equal(model[name], group[name]) for name in group)


def test_a_snapshot_is_a_copy_that_later_steps_do_not_touch(tmp_path):
    taken = snapshot(1)
    gate, write_file = Gate(), atomic.write_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_file", lambda *a: gate.wait() or write_file(*a))
        with Checkpointer(tmp_path) as checkpoints:
            checkpoints.save(taken)
            taken.tensors["model"]["w"].zero_()
            taken.state["best"] = "changed"
            gate.open()
    loaded = load_latest(tmp_path).snapshot
    assert torch.equal(loaded.tensors["model"]["w"], snapshot(1).tensors["model"]["w"])
    assert loaded.state == snapshot(1).state


class Gate:
    """Holds the writer's thread until the test lets it go."""

    def __init__(self):
        self.event = threading.Event()
        self.open = self.event.set

    def wait(self) -> None:
        assert self.event.wait(30), "nobody opened the gate"


def test_a_second_save_reuses_the_buffers_and_both_are_right(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(snapshot(1))
        first = {key: buffer.data_ptr() for key, buffer in checkpoints._staging.items()}
        checkpoints.save(snapshot(2))
        assert {key: buffer.data_ptr() for key, buffer in checkpoints._staging.items()} == first
    for step in (1, 2):
        loaded = load(tmp_path / f"step-00000{step}")
        assert torch.equal(loaded.tensors["model"]["w"], snapshot(step).tensors["model"]["w"])


def test_one_group_can_be_loaded_alone(tmp_path):
    filled(tmp_path, 4)
    assert load_latest(tmp_path, groups=["model"]).snapshot.tensors.keys() == {"model"}
    (tmp_path / "step-000004" / "optimizer.safetensors").unlink()  # weights alone serve as a start for another run
    assert load(tmp_path / "step-000004", groups=["model"]).step == 4
    with pytest.raises(DataError, match=r"no reward\.safetensors"):
        load(tmp_path / "step-000004", groups=["reward"])


def test_an_empty_or_absent_directory_has_nothing_to_restore(tmp_path):
    assert load_latest(tmp_path) == (None, ())
    assert load_latest(tmp_path / "absent") == (None, ())
    with pytest.raises(DataError, match="no checkpoint is marked as best"):
        load_best(tmp_path)


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0, 1, 8, 0.5, -1])
def test_a_truncated_file_makes_the_one_before_load(tmp_path, name, part):
    filled(tmp_path, 1, 2)
    path = tmp_path / "step-000002" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part) if part == 0.5 else part])
    loaded, rejected = load_latest(tmp_path)
    assert loaded.step == 1
    assert [r.path.name for r in rejected] == ["step-000002"] and name in rejected[0].reason
    assert "\n" not in rejected[0].reason


def test_any_flipped_bit_makes_the_one_before_load_or_changes_nothing(tmp_path):
    filled(tmp_path, 1, 2)
    good = load(tmp_path / "step-000002")
    for name in FILES:
        path = tmp_path / "step-000002" / name
        whole = path.read_bytes()
        for position in {*range(0, len(whole), 7), len(whole) - 1}:
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
            loaded, rejected = load_latest(tmp_path)
            if loaded.step == 2:  # only white space of the manifest carries no meaning
                assert name == "manifest.json" and chr(whole[position]).isspace()
                assert torch.equal(loaded.tensors["model"]["w"], good.tensors["model"]["w"])
            else:
                assert loaded.step == 1 and len(rejected) == 1
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_makes_the_one_before_load(tmp_path, name):
    filled(tmp_path, 1, 2)
    (tmp_path / "step-000002" / name).unlink()
    loaded, rejected = load_latest(tmp_path)
    assert loaded.step == 1 and name in rejected[0].reason


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format": 99}', "[" * 100_000, "\x00" * 300])
def test_an_empty_foreign_or_newer_manifest_makes_the_one_before_load(tmp_path, text):
    filled(tmp_path, 1, 2)
    (tmp_path / "step-000002" / "manifest.json").write_text(text)
    loaded, rejected = load_latest(tmp_path)
    assert loaded.step == 1 and len(rejected) == 1


def test_when_nothing_verifies_every_rejected_checkpoint_is_named(tmp_path):
    filled(tmp_path, 1, 2)
    for path in tmp_path.glob("step-*/state.json"):
        path.write_text("{}")
    loaded, rejected = load_latest(tmp_path)
    assert loaded is None
    assert [r.path.name for r in rejected] == ["step-000002", "step-000001"]


def test_a_copied_directory_still_loads(tmp_path):
    filled(tmp_path / "here", 1)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    assert load_latest(tmp_path / "there").snapshot.step == 1


# --- what is kept --------------------------------------------------------------------------------------------------


def test_the_newest_and_the_best_are_kept_and_named(tmp_path):
    with Checkpointer(tmp_path, keep_last=2) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(snapshot(step), best=step in (1, 3))
    assert steps(tmp_path) == [3, 6, 7]
    assert (tmp_path / "last").read_text() == "step-000007\n"
    assert (tmp_path / "best").read_text() == "step-000003\n"
    assert load_best(tmp_path).step == 3
    assert {path.name for path in tmp_path.iterdir()} == {"step-000003", "step-000006", "step-000007", "last", "best"}


def test_the_best_survives_a_restart_of_the_writer(tmp_path):
    with Checkpointer(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(snapshot(1), best=True)
    filled(tmp_path, 2, 3, keep_last=1)
    assert steps(tmp_path) == [1, 3]


def test_several_best_checkpoints_are_kept_when_asked_for(tmp_path):
    with Checkpointer(tmp_path, keep_last=1, keep_best=2) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(snapshot(step), best=step in (1, 2, 4))
    assert steps(tmp_path) == [2, 4, 7]


def test_no_best_is_kept_when_none_is_wanted(tmp_path):
    with Checkpointer(tmp_path, keep_last=1, keep_best=0) as checkpoints:
        checkpoints.save(snapshot(1), best=True)
        checkpoints.save(snapshot(2))
    assert steps(tmp_path) == [2]
    assert not (tmp_path / "best").exists()


def test_the_same_step_saved_twice_holds_the_second(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(snapshot(5))
        checkpoints.save(Snapshot(5, {"model": {"w": torch.ones(1)}}))
    assert load_latest(tmp_path).snapshot.tensors["model"]["w"].tolist() == [1]
    assert steps(tmp_path) == [5]


def test_a_run_that_went_back_drops_the_steps_it_left_behind(tmp_path):
    filled(tmp_path, 100, 200, 300)
    filled(tmp_path, 150)
    assert steps(tmp_path) == [100, 150]
    assert load_latest(tmp_path).snapshot.step == 150


def test_what_best_points_to_stays_even_if_the_run_went_back_before_it(tmp_path):
    with Checkpointer(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(snapshot(100))
        checkpoints.save(snapshot(300), best=True)
    filled(tmp_path, 150, keep_last=1)
    assert steps(tmp_path) == [150, 300]
    assert load_best(tmp_path).step == 300


def test_steps_are_ordered_as_numbers(tmp_path):
    filled(tmp_path, 999_999, 1_000_000, keep_last=1)
    assert steps(tmp_path) == [1_000_000]


@pytest.mark.parametrize("policy", [{"keep_last": 0}, {"keep_best": -1}])
def test_a_policy_that_keeps_nothing_is_refused(tmp_path, policy):
    with pytest.raises(ValueError, match="keep_last must be at least 1"):
        Checkpointer(tmp_path, **policy)


# --- errors of the writer ------------------------------------------------------------------------------------------


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "replace"])
def test_a_full_disk_comes_up_at_the_next_call_and_the_last_good_one_stays(tmp_path, monkeypatch, call):
    checkpoints = Checkpointer(tmp_path, keep_last=1)
    checkpoints.save(snapshot(1), best=True)
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, no_space)
        checkpoints.save(snapshot(2))
        with pytest.raises(ResourceError, match=r"step 2 was not written: No space left.*step-000001 is kept") as error:
            checkpoints.save(snapshot(3))
    assert "\n" not in str(error.value)
    assert load(tmp_path / "step-000001").step == 1
    checkpoints.save(snapshot(4))  # once there is room again, it goes on
    checkpoints.close()
    assert load_latest(tmp_path).snapshot.step == 4
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_error_of_the_last_write_comes_up_at_close(tmp_path, monkeypatch):
    checkpoints = Checkpointer(tmp_path)
    monkeypatch.setattr(os, "write", no_space)
    checkpoints.save(snapshot(1))
    with pytest.raises(ResourceError, match="there is none before it"):
        checkpoints.close()
    checkpoints.close()  # reported once


def test_a_synchronous_writer_fails_at_once(tmp_path, monkeypatch):
    checkpoints = Checkpointer(tmp_path, asynchronous=False)
    monkeypatch.setattr(os, "write", no_space)
    with pytest.raises(ResourceError, match="step 1 was not written"):
        checkpoints.save(snapshot(1))


def test_a_failed_write_does_not_hide_the_error_under_way(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", no_space)
    with pytest.raises(KeyError) as error, Checkpointer(tmp_path) as checkpoints:  # noqa: PT012
        checkpoints.save(snapshot(1))
        raise KeyError("first")
    assert "step 1 was not written" in error.value.__notes__[0]


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="checkpoints cannot be kept here: Not a directory"):
        Checkpointer(tmp_path / "file" / "checkpoints")


def test_a_dtype_that_safetensors_lacks_is_refused_by_name(tmp_path):
    with Checkpointer(tmp_path) as checkpoints, pytest.raises(DataError, match=r"phase: a tensor of torch\.complex128"):
        checkpoints.save(Snapshot(1, {"model": {"phase": torch.zeros(2, dtype=torch.complex128)}}))


def test_leftovers_of_a_killed_writer_are_cleared_and_a_stepping_aside_is_undone(tmp_path):
    filled(tmp_path, 1, 2)
    (tmp_path / ".tmp-step-000003").mkdir()
    (tmp_path / ".tmp-step-000003" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".tmp-last").write_text("step-0000")
    os.rename(tmp_path / "step-000002", tmp_path / ".tmp-replaced-step-000002")
    Checkpointer(tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} == {"step-000001", "step-000002", "last"}
    assert load_latest(tmp_path).snapshot.step == 2
