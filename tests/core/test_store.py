import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigError, DataError, ResourceError
from core.storage import store
from core.storage.store import RunDirectory, find_run, is_locked, list_runs, read_run, remove, runs_root

ROOT = Path(__file__).parents[2]


def finished(root: Path, name: str, **fields) -> Path:
    with RunDirectory.create(root, name, **fields) as directory:
        directory.finish("done")
    return directory.path


def other_process(program: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- a run's life --------------------------------------------------------------------------------------------------


def test_a_run_directory_holds_what_is_written_to_it(tmp_path):
    with RunDirectory.create(tmp_path / "runs", "digits", verb="train", seed=7) as directory:
        directory.config("train:\n  steps: 5\n")
        directory.event("started", workers=2)
        directory.metric(step=1, split="train", loss=2.5)
        directory.metric(step=2, split="validation", loss=float("nan"), names=("å", float("inf")))
        directory.summary({"steps": 2, "loss": float("nan")})
        directory.update(parameters=10)
        directory.finish("done")
    run = read_run(directory.path)
    assert re.fullmatch(r"\d{4}-\d{4}-digits-[0-9a-f]{4}", run.path.name)
    assert run.id == run.path.name == run.record["id"]
    assert {"verb": "train", "seed": 7, "parameters": 10, "status": "done", "error": None}.items() <= run.record.items()
    assert run.record["pid"] == os.getpid() and run.record["host"] and run.record["start"] <= run.record["end"]
    assert run.config() == "train:\n  steps: 5\n"
    assert [(e["event"], e["workers"]) for e in run.events()] == [("started", 2)]
    assert run.metrics()[0] == {"step": 1, "split": "train", "loss": 2.5}
    assert run.metrics()[1] == {"step": 2, "split": "validation", "loss": None, "names": ["å", None]}
    assert run.summary() == {"steps": 2, "loss": None}
    assert all((run.path / folder).is_dir() for folder in ("checkpoints", "model", "logs"))
    assert os.readlink(tmp_path / "runs" / "latest") == run.id


def test_every_file_of_a_run_is_strict_json_and_names_no_place(tmp_path):
    with RunDirectory.create(tmp_path, "digits") as directory:
        directory.event("started")
        directory.metric(step=1, loss=float("-inf"))
        directory.summary({"loss": float("nan")})
    for path in directory.path.glob("*.json*"):
        text = path.read_text()
        assert str(tmp_path) not in text
        for line in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(line, parse_constant=pytest.fail)


def test_a_run_goes_on_where_it_was_opened_again(tmp_path):
    with RunDirectory.create(tmp_path, "a", seed=3) as directory:
        directory.event("started")
        directory.finish("failed", error="disk full")
    with RunDirectory.open(directory.path) as again:
        again.event("resumed", step=5)
        assert {"seed": 3, "status": "running", "error": None, "end": None}.items() <= again.run.record.items()
    assert [e["event"] for e in read_run(directory.path).events()] == ["started", "resumed"]


def test_a_copied_run_works_and_has_its_own_name(tmp_path):
    path = finished(tmp_path, "a")
    copy = tmp_path / "elsewhere"
    shutil.copytree(path, copy)
    shutil.rmtree(path)
    with RunDirectory.open(copy) as directory:
        directory.metric(step=1)
    assert read_run(copy).id == "elsewhere"


def test_an_explicit_directory_is_the_run(tmp_path):
    path = tmp_path / "deep" / "mine"
    with RunDirectory.create(path) as directory:
        assert directory.path == path and directory.run.id == "mine"
    assert not (path.parent / "latest").exists()


def test_an_explicit_directory_in_use_for_something_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"run_dir: .*not empty \(it holds cat\.png\)"):
        RunDirectory.create(tmp_path / "photos")
    RunDirectory.create(tmp_path / "run").close()
    with pytest.raises(ConfigError, match="already holds a run; go on with it by resume=true"):
        RunDirectory.create(tmp_path / "run")


def test_a_creation_cut_short_can_be_repeated(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".tmp-run.json").write_text("{")
    RunDirectory.create(tmp_path).close()
    assert not (tmp_path / ".tmp-run.json").exists()


@pytest.mark.parametrize("name", ["../../x", "a/b c", "", "...", "ö" * 300])
def test_any_name_makes_a_plain_directory_name(tmp_path, name):
    with RunDirectory.create(tmp_path, name) as directory:
        assert directory.path.parent == tmp_path
        assert re.fullmatch(r"[0-9A-Za-z_.-]+", directory.path.name) and len(directory.path.name) < 60


def test_the_environment_names_the_root(monkeypatch):
    monkeypatch.delenv("HANSE_RUNS", raising=False)
    assert runs_root() == Path("runs")
    monkeypatch.setenv("HANSE_RUNS", "/data/runs")
    assert runs_root() == Path("/data/runs")


# --- the lock ------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from core.storage.store import RunDirectory
directory = RunDirectory.open(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_one_is_dead(tmp_path):
    path = finished(tmp_path, "a")
    arguments = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert is_locked(path) and read_run(path).status == "running"
        for refused in (RunDirectory.open, lambda path: remove(read_run(path))):
            with pytest.raises(ResourceError, match=f"{path.name} is in use by pid {holder.pid} on host") as error:
                refused(path)
            assert "\n" not in str(error.value) and error.value.exit_code == 4
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert not is_locked(path)
    assert read_run(path).status == "killed"
    RunDirectory.open(path).close()


def test_a_reader_neither_needs_nor_takes_the_lock(tmp_path):
    with RunDirectory.create(tmp_path, "a") as directory:
        assert read_run(directory.path).status == "running"
        directory.metric(step=1)
        assert read_run(directory.path).metrics() == [{"step": 1}]  # each line is there at once
    assert read_run(directory.path).status == "killed"
    (directory.path / ".lock").unlink()  # as in a copy made by a tool that leaves hidden files out
    assert read_run(directory.path).status == "killed"


def test_a_failed_creation_gives_the_lock_back(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_space)
        with pytest.raises(ResourceError, match=r"run\.json: cannot be written: No space left"):
            RunDirectory.create(tmp_path / "a")
    RunDirectory.create(tmp_path / "a").close()


# --- logs ----------------------------------------------------------------------------------------------------------


def test_half_a_last_line_is_ignored_and_cut_off_before_the_next_one(tmp_path):
    with RunDirectory.create(tmp_path, "a") as directory:
        directory.metric(step=1)
    path = directory.path / "metrics.jsonl"
    whole = path.read_bytes() + b'{"step": 2, "loss": 0.123456}\n'
    for length in range(len(b'{"step": 1}\n'), len(whole)):
        path.write_bytes(whole[:length])
        assert read_run(directory.path).metrics() == [{"step": 1}], length
        with RunDirectory.open(directory.path) as again:
            again.metric(step=3)
        assert read_run(directory.path).metrics() == [{"step": 1}, {"step": 3}], length


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    with RunDirectory.create(tmp_path, "a") as directory:
        directory.metric(step=1)
    for damage in (b"{\n", b"[1]\n", b"\x00\x00\n", b"\xff\n", b"[" * 100_000 + b"\n"):
        (directory.path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + damage)
        with pytest.raises(DataError, match=r"metrics\.jsonl:2: is not a JSON object"):
            read_run(directory.path).metrics()


def test_going_back_to_a_step_drops_later_metrics_and_only_those(tmp_path):
    with RunDirectory.create(tmp_path, "a") as directory:
        directory.rewind(0)  # nothing written yet
        for step in range(1, 7):
            directory.metric(step=step, split="train", loss=1 / step)
        directory.metric(note="no step")
        directory.rewind(4)
        directory.metric(step=5, split="train", loss=9.0)
    metrics = read_run(directory.path).metrics()
    assert [record.get("step") for record in metrics] == [1, 2, 3, 4, None, 5]
    assert metrics[2]["loss"] == 1 / 3 and metrics[-1]["loss"] == 9.0


def test_an_event_is_on_the_disk_when_the_call_returns(tmp_path, monkeypatch):
    synced = []
    with RunDirectory.create(tmp_path, "a") as directory:
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
        directory.event("started")
    assert synced == [str(directory.path.resolve() / "events.jsonl")]


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_worker_that_joins_drops_no_line_that_another_writes_meanwhile(tmp_path, monkeypatch):
    with RunDirectory.create(tmp_path / "run") as holder:
        holder.metric(step=1)
        read = Path.read_bytes

        def slow(path):
            content = read(path)
            if path.name == "metrics.jsonl":
                holder.metric(step=2)
            return content

        monkeypatch.setattr(Path, "read_bytes", slow)
        worker = RunDirectory.join(holder.path)
        worker.metric(step=3)
        worker.close()
        monkeypatch.undo()
        assert [record["step"] for record in holder.run.metrics()] == [1, 2, 3]


def test_a_disk_that_fills_up_within_a_line_leaves_whole_lines(tmp_path, monkeypatch):
    write = os.write

    def partial(fd: int, data: memoryview) -> int:
        return write(fd, data[:5]) if len(data) > 12 else no_space()

    with RunDirectory.create(tmp_path, "a") as directory:
        directory.metric(step=1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", partial)
            with pytest.raises(
                ResourceError, match=r"metrics\.jsonl: cannot be written: No space left on device; free"
            ):
                directory.metric(step=2, loss=0.5)
        directory.metric(step=3)
    assert read_run(directory.path).metrics() == [{"step": 1}, {"step": 3}]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ResourceError, match=r"no run directory can be made here: Not a directory; .*HANSE_RUNS"
    ) as error:
        RunDirectory.create(tmp_path / "file" / "runs", "a")
    assert "\n" not in str(error.value)


# --- finding -------------------------------------------------------------------------------------------------------


def several(root: Path) -> list[str]:
    for number, name in enumerate(["1123-1010-digits-aaaa", "1123-1011-digits-bbbb", "1124-0900-text-cccc"]):
        with RunDirectory.create(root / name, start=f"2026-11-2{number}T10:00:00+00:00") as directory:
            directory.finish("done")
    return [run.id for run in list_runs(root)]


def test_runs_are_listed_newest_first_whatever_else_lies_there(tmp_path):
    several(tmp_path)
    (tmp_path / "latest").symlink_to("1124-0900-text-cccc")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".tmp-removed-x").mkdir()
    (tmp_path / ".tmp-removed-x" / "run.json").write_text("{}")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "run.json").write_text('{"id": ')
    runs = list_runs(tmp_path)
    assert [run.id for run in runs] == [
        "1124-0900-text-cccc",
        "1123-1011-digits-bbbb",
        "1123-1010-digits-aaaa",
        "damaged",
    ]
    assert [run.status for run in runs] == ["done", "done", "done", "unreadable"]
    assert list_runs(tmp_path / "absent") == []


@pytest.mark.parametrize(
    "reference, meant",
    [
        ("1123-1010-digits-aaaa", "1123-1010-digits-aaaa"),
        ("1124", "1124-0900-text-cccc"),
        ("bbbb", "1123-1011-digits-bbbb"),
        ("latest", "1124-0900-text-cccc"),
    ],
)
def test_a_run_is_found_by_id_beginning_end_and_latest(tmp_path, reference, meant):
    several(tmp_path)
    assert find_run(tmp_path, reference).path == tmp_path / meant


def test_latest_is_the_newest_run_under_the_root_that_has_what_is_needed(tmp_path):
    old = finished(tmp_path, "old")
    with RunDirectory.create(tmp_path / "mine", start="2099-01-01T10:00:00+00:00") as directory:
        directory.finish("failed", "out of memory")
    assert find_run(tmp_path, "latest").path == tmp_path / "mine"  # though the link shows another one
    assert find_run(tmp_path, "latest", lambda run: run.status == "done").path == old
    assert find_run(tmp_path, "latest", lambda run: False).path == tmp_path / "mine"


def test_a_run_is_found_by_path_and_by_the_link(tmp_path, monkeypatch):
    path = finished(tmp_path / "runs", "a")
    assert find_run(tmp_path / "elsewhere", str(path)).path == path
    assert find_run(tmp_path / "runs", "latest").path == path
    assert find_run(tmp_path / "elsewhere", str(path.parent / "latest")).path == path
    monkeypatch.chdir(path.parent)
    assert find_run(Path(), path.name).path == Path(path.name)


@pytest.mark.parametrize(
    "reference, message",
    [
        ("1123", r"1123: 2 runs are meant by this: 1123-1011-digits-bbbb, 1123-1010-digits-aaaa; write more"),
        ("1123-1010-digit-aaaa", r"no such run in .*; the nearest are 1123-1010-digits-aaaa, 1123-1011"),
        ("zzz", r"the nearest are 1124-0900-text-cccc, 1123-1011-digits-bbbb, 1123-1010-digits-aaaa"),
        ("", r"no such run"),
    ],
)
def test_a_run_that_is_not_there_is_answered_with_near_ones(tmp_path, reference, message):
    several(tmp_path)
    with pytest.raises(DataError, match=message):
        find_run(tmp_path, reference)


def test_without_any_run_the_answer_says_where_it_looked(tmp_path):
    with pytest.raises(DataError, match=r"latest: no such run; there are none in .*absent/ yet"):
        find_run(tmp_path / "absent", "latest")
    with pytest.raises(DataError, match="is not a run directory"):
        read_run(tmp_path)


def test_removing_a_run_moves_latest_to_the_one_before(tmp_path):
    first, second = finished(tmp_path, "a", start="2026-01-01"), finished(tmp_path, "b", start="2026-01-02")
    remove(find_run(tmp_path, "latest"))
    assert not second.exists() and os.readlink(tmp_path / "latest") == first.name
    remove(read_run(first))
    assert list(tmp_path.iterdir()) == []


def test_the_store_imports_no_torch():
    program = (
        "import sys, core.storage.store; print(sorted({'torch', 'numpy', 'yaml', 'pydantic'} & sys.modules.keys()))"
    )
    assert other_process(program).stdout == "[]\n"


def test_a_directory_named_latest_is_left_alone(tmp_path):
    (tmp_path / "latest").mkdir()
    path = finished(tmp_path, "a")
    assert (tmp_path / "latest").is_dir() and not (tmp_path / "latest").is_symlink()
    assert find_run(tmp_path, "latest").path == path
    assert not list(tmp_path.glob(f"{store.TEMPORARY}*"))


# --- several processes of one run ----------------------------------------------------------------------------------


def test_a_worker_writes_into_the_run_that_another_process_holds_and_the_holder_reads_along(tmp_path):
    with RunDirectory.create(tmp_path / "run", seed=1) as holder:
        follower = holder.follow()
        worker = RunDirectory.join(holder.path)
        worker.record({"event": "started", "step": 0})
        worker.record({"step": 1, "split": "train", "loss": 2.0})
        worker.update(parameters=5)
        assert [record.get("event", record.get("step")) for record in follower.new()] == ["started", 1]
        assert follower.new() == []
        worker.close()
        assert is_locked(holder.path)  # a worker that ends does not end the run
        holder.update(data="digits")
        assert {"seed": 1, "parameters": 5, "data": "digits"}.items() <= holder.run.record.items()


def test_what_a_restarted_worker_does_again_is_recorded_once_and_reported_again(tmp_path):
    with RunDirectory.create(tmp_path / "run") as holder:
        follower = holder.follow()
        for first, last in ((0, 6), (4, 8)):  # killed after step 6, its last checkpoint is of step 4
            worker = RunDirectory.join(holder.path)
            worker.record({"event": "started", "step": first})
            for step in range(first + 1, last + 1):
                worker.record({"step": step, "loss": 1 / step})
            worker.close()
            reported = [record["step"] for record in follower.new() if "event" not in record]
            assert reported == list(range(first + 1, last + 1))
        assert [record["step"] for record in holder.run.metrics()] == list(range(1, 9))
