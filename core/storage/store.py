"""Run directories: the truth about a run, in files that a person can read and a script can copy.

    runs/1123-2036-digits-7f3a/{run.json, config.yaml, events.jsonl, metrics.jsonl, summary.json, checkpoints/, ...}

Any process may read (`Run`); the one that trains holds an exclusive lock (`RunDirectory`), which the kernel releases
when it dies. No absolute path is kept inside, so a copied directory still works. Standard library only: `hanse runs
list` must answer at once.
"""

import difflib
import errno
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core.errors import ConfigError, DataError, HanseError, ResourceError
from core.storage.atomic import TEMPORARY, remove_tree, replace_text, write_all
from core.storage.lines import Follower, Record, finite, line_of, open_log, read_lines, stays
from core.storage.path import user_path
from core.storage.read import read_json
from core.storage.steps import has_checkpoints

_LOCK = ".lock"
UNREADABLE = "unreadable"  # the status of a run whose run.json is missing or damaged
_FOLDERS = ("checkpoints", "model", "logs")


def runs_root() -> Path:
    """Where run directories go: the environment's HANSE_RUNS, or `runs` in the current directory."""
    return user_path(os.environ.get("HANSE_RUNS") or "runs", "HANSE_RUNS")


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run as it lies on the disk, for reading; it may still be going on in another process."""

    path: Path
    record: Record  # run.json as it was when the Run was made

    @property
    def id(self) -> str:
        """The directory's name, which stays right when the directory is moved or copied."""
        return self.path.resolve().name

    @property
    def status(self) -> str:
        """What run.json says: `running`, `done`, `failed`, ...; or `killed` if it says running and nobody does."""
        status = str(self.record.get("status", "unreadable"))
        return "killed" if status == "running" and not is_locked(self.path) else status

    def config(self) -> str:
        """The resolved config as YAML text; empty if there is none."""
        path = self.path / "config.yaml"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def metrics(self) -> list[Record]:
        """The records of metrics.jsonl in order, without a torn last line. Raises DataError if one is damaged."""
        return read_lines(self.path / "metrics.jsonl")

    def events(self) -> list[Record]:
        """The records of events.jsonl in order, without a torn last line. Raises DataError if one is damaged."""
        return read_lines(self.path / "events.jsonl")

    def summary(self) -> Record:
        """summary.json; empty if the run has not come to its end. Raises DataError if it is damaged."""
        path = self.path / "summary.json"
        return read_json(path) if path.is_file() else {}


def read_run(path: Path) -> Run:
    """The run in a directory. Raises DataError if there is none, or its run.json is missing or damaged."""
    path = Path(path)
    if not is_run(path):
        raise DataError(f"{path}: is not a run directory, it has no run.json")
    try:
        return Run(path, read_json(path / "run.json"))
    except DataError as error:
        raise DataError(f"{error}; start its command again with resume={path}, which writes a new one") from None


def run_at(path: Path) -> Run:
    """The same; one whose run.json is missing or damaged has the status `unreadable`. DataError if there is no run."""
    try:
        return read_run(path)
    except DataError as error:
        if not is_run(path):
            raise
        return Run(Path(path), {"status": UNREADABLE, "error": str(error)})


def is_run(path: Path) -> bool:
    """Whether a directory holds a run: its run.json, or checkpoints without one."""
    path = Path(path)
    return os.path.isfile(path / "run.json") or has_checkpoints(path)


def is_locked(path: Path) -> bool:
    """Whether a live process is at work in a run directory."""
    try:
        fd = os.open(Path(path) / _LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def list_runs(root: Path) -> list[Run]:
    """The runs under a root, newest first. One whose run.json is damaged is listed with the status `unreadable`."""
    root = Path(root)
    if not root.is_dir():
        return []
    paths = [path for path in root.iterdir() if not path.is_symlink() and not path.name.startswith(".")]
    runs = [run_at(path) for path in paths if is_run(path)]
    return sorted(runs, key=lambda run: (str(run.record.get("start", "")), run.id), reverse=True)


def find_run(root: Path, reference: str, has: Callable[[Run], bool] = lambda run: True) -> Run:
    """The run meant by a path, an id, the unique beginning of an id, an id's last four characters, or `latest`: the
    newest that `has` what is needed, or the newest of all where none has it.

    Raises DataError that names what is near if nothing or more than one run is meant.
    """
    root = Path(root)
    for path in () if reference == "latest" else (root / reference, user_path(reference, "run")):
        if is_run(path):
            return run_at(path.parent / os.readlink(path) if path.is_symlink() else path)
    runs = list_runs(root)
    if not runs:
        raise DataError(f"{reference}: no such run; there are none in {root}/ yet (HANSE_RUNS names another place)")
    if reference == "latest":
        return next(filter(has, runs), runs[0])
    meant = [run for run in runs if reference and (run.id.startswith(reference) or run.id.endswith(f"-{reference}"))]
    if len(meant) > 1:
        names = _some([run.id for run in meant])
        raise DataError(f"{reference}: {len(meant)} runs are meant by this: {names}; write more of the name")
    if not meant:
        near = difflib.get_close_matches(reference, [run.id for run in runs], n=3)
        raise DataError(f"{reference}: no such run in {root}/; the nearest are {_some(near or [r.id for r in runs])}")
    return meant[0]


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


# --- removing ------------------------------------------------------------------------------------------------------


def remove(run: Run) -> None:
    """Removes a run directory, and moves `latest` to the newest that is left. Raises ResourceError if it is in use."""
    root = run.path.parent
    fd = _lock(run.path)
    try:
        with _resource(run.path, "cannot be removed"):
            remove_tree(run.path)
            latest = root / "latest"
            if latest.is_symlink() and os.readlink(latest) == run.path.name:
                latest.unlink()
                if left := list_runs(root):
                    _point(latest, left[0].path.name)
    finally:
        os.close(fd)


# --- writing -------------------------------------------------------------------------------------------------------


class RunDirectory:
    """The run directory of the process that trains; a context manager that holds its lock.

    Everything is appended or atomically replaced, so a kill at any moment leaves a readable directory. Raises
    ResourceError if another process holds the run, or the disk is full or read-only. `run` reads what is written.
    """

    def __init__(self, path: Path, lock: bool = True) -> None:
        """Takes the lock of an existing directory; use `create`, `open` or `join`."""
        self.path = Path(path)
        self._lock = _lock(self.path) if lock else -1
        self._logs: dict[str, int] = {}
        self.restored = ""  # what was wrong with its run.json, if a new one was written

    @classmethod
    def create(cls, where: Path, name: str | None = None, **fields: Any) -> Self:
        """A new run: `<where>/<MMDD-HHMM>-<name>-<hash4>` and the link `latest`; without a name `where` itself.

        `fields` go into run.json beside id, status, start, host and pid. Raises ConfigError if `where` itself is to be
        the run directory and is not empty.
        """
        where = Path(where)
        with _resource(where, "no run directory can be made here"):
            path = where if name is None else _new_directory(where, name)
            path.mkdir(parents=True, exist_ok=True)
        _check_unused(path)
        directory = cls(path)
        try:
            _check_unused(path)  # again: another process may have been faster
            start = {"id": path.resolve().name, "status": "running", "start": _now(), "end": None, "error": None}
            directory.update(**{**start, **_process(), **fields})
            directory._prepare()
        except HanseError:
            directory.close()
            raise
        if name is not None:
            _point(where / "latest", path.name)
        return directory

    @classmethod
    def open(cls, path: Path, **fields: Any) -> Self:
        """An existing run, to resume. Raises DataError if there is none, ResourceError if it is in use.

        If its run.json is missing or damaged a new one is written, with `fields`; `restored` then says so.
        """
        run = run_at(path)
        directory = cls(path)
        if run.status == UNREADABLE:
            directory._restore(str(run.record["error"]).partition(";")[0], fields)
        directory.update(status="running", end=None, error=None, **_process())
        directory._prepare()
        return directory

    @classmethod
    def join(cls, path: Path) -> Self:
        """The directory of a run whose lock the process that started this one holds: a worker's way to write."""
        read_run(path)
        return cls(path, lock=False)

    @property
    def run(self) -> Run:
        """The run as readers see it."""
        return read_run(self.path)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The model directory."""
        return self.path / "model"

    @property
    def logs(self) -> Path:
        """Where workers and libraries write what is not for the console."""
        return self.path / "logs"

    def update(self, **fields: Any) -> None:
        """Sets fields of run.json; those that others have set stay."""
        before = read_run(self.path).record if is_run(self.path) else {}
        self.replace("run.json", json.dumps(finite({**before, **fields}), indent=2) + "\n")

    def finish(self, status: str, error: str | None = None) -> None:
        """Records how the run ended: `done`, `failed`, `interrupted`."""
        self.update(status=status, end=_now(), error=error)

    def config(self, text: str) -> None:
        """Writes config.yaml, the resolved config."""
        self.replace("config.yaml", text)

    def summary(self, record: Record) -> None:
        """Writes summary.json."""
        self.replace("summary.json", json.dumps(finite(record), indent=2) + "\n")

    def record(self, record: Record) -> None:
        """Writes what training reports: an event or a line of metrics. What `started` goes over again is dropped."""
        if "event" not in record:
            self.metric(**record)
            return
        if record["event"] == "started":
            self.rewind(record["step"])
        self.event(**record)

    def follow(self) -> "Follower":
        """Reads what other processes of this run write from now on."""
        return Follower(self.path)

    def event(self, event: str, **fields: Any) -> None:
        """Appends to events.jsonl and returns when it is on the disk: then one can act on it. `time` is Unix time."""
        self._append("events.jsonl", {"event": event, "time": round(time.time(), 3), **fields})
        os.fsync(self._logs["events.jsonl"])

    def metric(self, **fields: Any) -> None:
        """Appends one line to metrics.jsonl; readers see it at once. A number that is not finite becomes null."""
        self._append("metrics.jsonl", fields)

    def rewind(self, step: int) -> None:
        """Drops the metrics of steps after `step`, which a run resumed there will write again."""
        self.keep_metrics(lambda record: stays(record, "step", step))

    def keep_metrics(self, wanted: Callable[[Record], bool]) -> None:
        """Drops the metrics that are not wanted, while nobody else writes any."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return
        lines = [line_of(record).decode() for record in read_lines(path) if wanted(record)]
        if "metrics.jsonl" in self._logs:
            os.close(self._logs.pop("metrics.jsonl"))
        self.replace("metrics.jsonl", "".join(lines))

    def replace(self, name: str, text: str) -> None:
        """Gives a text file of the run its content, atomically."""
        with _resource(self.path / name, "cannot be written"):
            replace_text(self.path / name, text)

    def close(self) -> None:
        """Releases the lock."""
        for fd in self._logs.values():
            os.close(fd)
        self._logs.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _restore(self, problem: str, fields: Record) -> None:
        file = self.path / "run.json"
        with _resource(self.path, "cannot be written"):
            if os.path.lexists(file):
                os.replace(file, file.with_name("run.json.damaged"))
        start = {"id": self.path.resolve().name, "status": "running", "start": _now()}
        self.replace("run.json", json.dumps(finite({**start, **fields}), indent=2) + "\n")
        self.restored = (
            f"{problem}; a new one was written, and the run resumes. Whether its data is still the same is not known "
            "any more"
        )
        self.event("warning", message=self.restored)

    def _prepare(self) -> None:
        with _resource(self.path, "cannot be written"):
            for folder in _FOLDERS:
                (self.path / folder).mkdir(exist_ok=True)

    def _append(self, name: str, record: Record) -> None:
        line = line_of(record)
        with _resource(self.path / name, "cannot be written"):
            if name not in self._logs:
                self._logs[name] = open_log(self.path / name)
            fd = self._logs[name]
            size = os.fstat(fd).st_size
            try:
                write_all(fd, memoryview(line))
            except OSError:
                os.ftruncate(fd, size)  # half a line would swallow the next one
                raise


def _process() -> Record:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _check_unused(path: Path) -> None:
    if is_run(path):
        is_vain = run_at(path).status == "failed" and not has_checkpoints(path)
        way_out = f"remove it with `hanse runs remove {path}`" if is_vain else "go on with it by resume=true"
        raise ConfigError(f"run_dir: {path} already holds a run; {way_out}, or name another")
    if extra := sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".")):
        raise ConfigError(f"run_dir: {path} is not empty (it holds {extra[0]}); name a new directory")


def _lock(path: Path) -> int:
    """Takes the exclusive lock of a run directory; the descriptor holds it until it is closed or the process dies."""
    with _resource(path, "cannot be locked"):
        fd = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    for attempt in range(5):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02 * attempt)  # `is_locked` of another process may hold it for an instant
        else:
            break
    else:
        holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(fd)
        raise ResourceError(
            f"run directory {path} is in use by {holder}; wait for it, stop it, or name another run_dir"
        )
    with _resource(path, "cannot be locked"):
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"pid {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
    return fd


def _new_directory(root: Path, name: str) -> Path:
    """`<root>/<MMDD-HHMM>-<name>-<hash4>`, made; four random hexadecimal digits tell runs of one minute apart."""
    root.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[:40] or "run"
    while True:
        path = root / f"{datetime.now():%m%d-%H%M}-{slug}-{os.urandom(2).hex()}"
        with suppress(FileExistsError):
            path.mkdir()
            return path


def _point(link: Path, name: str) -> None:
    """Makes `link` a symbolic link to a sibling, atomically; nothing where the file system has no such links."""
    temporary = link.with_name(f"{TEMPORARY}{link.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(name, target_is_directory=True)
        os.replace(temporary, link)
    except OSError as error:
        # find_run("latest") does without; IsADirectoryError: the user keeps a directory of that name
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EISDIR):
            raise
        temporary.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


@contextmanager
def _resource(path: Path, what: str) -> Iterator[None]:
    """Turns an error of the system into one line that says where and what."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"{path}: {what}: {error.strerror}; free space, or set run_dir or HANSE_RUNS") from error
