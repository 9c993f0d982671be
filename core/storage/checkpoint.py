"""Checkpoints: written beside the training loop, whole or absent, verified before they are read.

    checkpoints/step-000200/{model.safetensors, optimizer.safetensors, state.json, manifest.json}
    checkpoints/last, checkpoints/best        text files that hold the name of a step's directory

The manifest holds size and SHA-256 of every file and is written last; a directory gets its name only when all of it is
on the disk. Nothing is unpickled. `load_latest` falls back to the newest checkpoint that verifies.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from core.errors import DataError, ResourceError
from core.storage.atomic import TEMPORARY, fingerprint, remove_tree, replace_text, sync_directory, write_file
from core.storage.read import read_json
from core.storage.steps import is_step, step_of, steps

Tensors = dict[str, Tensor]
FORMAT = 1  # of the directory's layout; other versions are rejected, not guessed at

_REPLACED = f"{TEMPORARY}replaced-"
# safetensors' names of what torch calls float32 and so on
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass
class Snapshot:
    """All that a run needs to go on after `step` finished steps, and nothing that must be unpickled.

    `tensors` holds named groups ("model", "optimizer"), one safetensors file each; `state` is a JSON-able dict.
    """

    step: int
    tensors: dict[str, Tensors]
    state: dict[str, Any] = field(default_factory=dict)


class Rejected(NamedTuple):
    """A checkpoint that did not verify, and why."""

    path: Path
    reason: str


class Restored(NamedTuple):
    """What `load_latest` found: the newest good snapshot (None if there is none) and what it had to pass over."""

    snapshot: Snapshot | None
    rejected: tuple[Rejected, ...]


# --- reading -------------------------------------------------------------------------------------------------------


def load_latest(directory: Path, groups: Iterable[str] | None = None) -> Restored:
    """The newest checkpoint in a directory that verifies; those that do not are named with the reason.

    `groups` None loads all groups. No snapshot but something rejected means a damaged run, not a fresh one: say so.
    """
    rejected: list[Rejected] = []
    for path in reversed(steps(Path(directory))):
        try:
            return Restored(load(path, groups), tuple(rejected))
        except DataError as error:
            rejected.append(Rejected(path, str(error)))
    return Restored(None, tuple(rejected))


def latest_step(directory: Path) -> int:
    """The step of the newest checkpoint, whole or not; 0 without one."""
    return max(map(step_of, steps(directory)), default=0)


def load_best(directory: Path, groups: Iterable[str] | None = None) -> Snapshot:
    """The checkpoint that `best` names. Raises DataError if there is none or it does not verify."""
    name = _pointed(Path(directory) / "best")
    if name is None:
        raise DataError(f"{directory}: no checkpoint is marked as best; use the last one")
    return load(Path(directory) / name, groups)


def load(path: Path, groups: Iterable[str] | None = None) -> Snapshot:
    """One checkpoint directory, verified against its manifest. Raises DataError saying what is wrong with it.

    Tensors that shared memory when saved (tied weights) are the same object again. All are on the CPU.
    """
    path = Path(path)
    files = _read_manifest(path)["files"]
    wanted = [name.removesuffix(".safetensors") for name in files if name.endswith(".safetensors")]
    if groups is not None:
        wanted = list(groups)
    for name in ["state.json", *(f"{group}.safetensors" for group in wanted)]:
        if name not in files:
            raise DataError(f"{path}: has no {name}; it is no checkpoint of this kind")
        _verify(path / name, files[name])
    record = read_json(path / "state.json")
    tensors = {group: load_file(path / f"{group}.safetensors") for group in wanted}
    for group in wanted:
        for alias, name in record["aliases"].get(group, {}).items():
            tensors[group][alias] = tensors[group][name]
    return Snapshot(record["step"], tensors, record["state"])


def _verify(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        if path.stat().st_size != expected["size"]:  # before hashing: a truncated file is the common case
            raise DataError(f"{path}: is {path.stat().st_size} bytes long, the manifest says {expected['size']}")
        if fingerprint(path).sha256 != expected["sha256"]:
            raise DataError(f"{path}: content differs from the manifest's SHA-256; a bit has changed on the disk")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise DataError(f"{path}: checkpoint format {manifest.get('format')!r}, this Hanse reads format {FORMAT}")
    if manifest.pop("sha256", None) != _checksum(manifest):
        raise DataError(f"{path / 'manifest.json'}: content differs from its own SHA-256")
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> str:
    return sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _pointed(pointer: Path) -> str | None:
    """The directory name that `last` or `best` holds; None if there is no such file or it holds something else."""
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    return name if is_step(name) else None


# --- writing -------------------------------------------------------------------------------------------------------


class Checkpointer:
    """Writes snapshots into one directory and keeps the `keep_last` newest and the `keep_best` last best ones.

    `save` copies the tensors and returns; a thread writes them, one snapshot at a time. An error of the writer (disk
    full, read-only) comes up as ResourceError at the next `save`, `wait` or `close`; what was good before stays.
    One Checkpointer per directory: opening one clears what a killed writer left.
    """

    def __init__(self, directory: Path, keep_last: int = 2, keep_best: int = 1, asynchronous: bool = True) -> None:
        if keep_last < 1 or keep_best < 0:
            raise ValueError(f"keep_last must be at least 1 and keep_best at least 0, got {keep_last} and {keep_best}")
        self.directory = Path(directory)
        self.keep_last, self.keep_best = keep_last, keep_best
        self._writer = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._pending: Future[None] | None = None
        self._staging: dict[tuple[str, str], Tensor] = {}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _clear_leftovers(self.directory)
        except OSError as error:
            raise ResourceError(f"{self.directory}: checkpoints cannot be kept here: {error.strerror}") from error

    def save(self, snapshot: Snapshot, best: bool = False) -> None:
        """Takes a copy of the snapshot and starts writing it; `best` also points the `best` file to it.

        Waits for the write before it, and raises ResourceError if that one failed.
        """
        self.wait()
        tensors, aliases = {}, {}
        for group, members in snapshot.tensors.items():
            unique, aliases[group] = _untie(members)
            tensors[group] = {name: self._stage(group, name, tensor) for name, tensor in unique.items()}
        if any(tensor.is_cuda for members in snapshot.tensors.values() for tensor in members.values()):
            torch.cuda.synchronize()
        state = json.dumps({"step": snapshot.step, "aliases": aliases, "state": snapshot.state}).encode()
        if self._writer is None:
            self._write(snapshot.step, tensors, state, best)
        else:
            self._pending = self._writer.submit(self._write, snapshot.step, tensors, state, best)

    def load_latest(self, groups: Iterable[str] | None = None) -> Restored:
        """The newest snapshot that verifies, after any pending write; see `load_latest`."""
        self.wait()
        return load_latest(self.directory, groups)

    def wait(self) -> None:
        """Returns when nothing is being written. Raises ResourceError if the last write failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finishes the pending write and ends the thread. Raises ResourceError if the write failed."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        except ResourceError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # the error under way is the one to report first

    def _stage(self, group: str, name: str, tensor: Tensor) -> Tensor:
        """A contiguous copy on the CPU, in the buffer of the save before if it still fits."""
        if tensor.dtype not in _DTYPES:
            raise DataError(f"{name}: a tensor of {tensor.dtype} cannot be kept in a checkpoint; convert it first")
        buffer = self._staging.get((group, name))
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            # pinned memory lets the GPU copy without stopping at every tensor
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._staging[group, name] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=True)

    def _write(self, step: int, tensors: dict[str, Tensors], state: bytes, best: bool) -> None:
        name = f"step-{step:06d}"
        temporary = self.directory / f"{TEMPORARY}{name}"
        try:
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir()
            _write_directory(temporary, tensors, state, {"format": FORMAT, "step": step, "best": best})
            _give_name(temporary, self.directory / name)
            replace_text(self.directory / "last", name + "\n")
            if best and self.keep_best:
                replace_text(self.directory / "best", name + "\n")
            self._prune(step)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)  # frees what a full disk needs most
            raise ResourceError(self._explain(step, error)) from error

    def _explain(self, step: int, error: OSError) -> str:
        kept = _pointed(self.directory / "last")
        good = f"{kept} is kept" if kept else "there is none before it"
        cause = error.strerror or str(error)
        return f"{self.directory}: checkpoint of step {step} was not written: {cause}; {good}; make room and resume"

    def _prune(self, step: int) -> None:
        """Removes what neither policy keeps, and steps beyond `step`: a run that went back has left them behind."""
        paths = steps(self.directory)
        until_now = [path for path in paths if step_of(path) <= step]
        keep = set(until_now[-self.keep_last :])
        if self.keep_best:
            keep.update([path for path in until_now if _is_best(path)][-self.keep_best :])
            keep.add(self.directory / (_pointed(self.directory / "best") or ""))
        for path in paths:
            if path not in keep:
                remove_tree(path)


def _is_best(path: Path) -> bool:
    try:
        return bool(_read_manifest(path)["best"])
    except DataError:  # damaged: worth nothing to the policy; load_latest is where it is reported
        return False


def _untie(tensors: Tensors) -> tuple[Tensors, dict[str, str]]:
    """Tensors that hold memory of their own, and for every other name the one whose memory it shares."""
    unique: Tensors = {}
    aliases: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in tensors.items():
        where = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and where in seen:
            aliases[name] = seen[where]
        else:
            unique[name], seen[where] = tensor, name
    return unique, aliases


def _safetensors(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file in parts: length of the header, header, then each tensor without a copy.

    Written here rather than by the library so that hashing and writing take one pass and never hold the GIL for long.
    """
    # large elements first keeps every tensor aligned to its element size
    order = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in order:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in order:
        if tensor.numel():
            yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _write_directory(path: Path, tensors: dict[str, Tensors], state: bytes, manifest: dict[str, Any]) -> None:
    written = {f"{group}.safetensors": write_file(path / f"{group}.safetensors", _safetensors(members))
               for group, members in tensors.items()}  # fmt: skip
    written["state.json"] = write_file(path / "state.json", [state])
    manifest["files"] = {name: file._asdict() for name, file in written.items()}
    manifest["sha256"] = _checksum(manifest)
    write_file(path / "manifest.json", [json.dumps(manifest, indent=1).encode()])
    sync_directory(path)


def _give_name(temporary: Path, path: Path) -> None:
    """Moves a finished directory to its name. A checkpoint of the same step steps aside and is never both gone."""
    aside = path.with_name(f"{_REPLACED}{path.name}")
    if path.exists():
        os.rename(path, aside)
    os.rename(temporary, path)
    sync_directory(path.parent)
    if aside.exists():
        remove_tree(aside)


def _clear_leftovers(directory: Path) -> None:
    """Removes what a killed writer left, and gives a checkpoint that was stepping aside its name back."""
    for path in directory.glob(f"{TEMPORARY}*"):
        original = directory / path.name.removeprefix(_REPLACED)
        if path.name.startswith(_REPLACED) and not original.exists():
            os.rename(path, original)
        elif path.is_dir():
            remove_tree(path)
        else:
            path.unlink()
