"""What clients keep from round to round: a file each, so that a hundred thousand of them take no memory.

    clients/000012-000007.safetensors      what client 12 kept in round 7

Files of the rounds since the last checkpoint lie beside those that it needs; `settle` removes what has been replaced.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from core.storage.atomic import TEMPORARY, sync_directory
from federated.exchange import Vectors
from federated.intake import Work

_NAME = re.compile(r"(\d+)-(\d+)\.safetensors")


class Keeping:
    """By client. Without a directory everything stays in memory."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory
        self.memory: dict[int, Vectors] = {}
        self.rounds: dict[int, list[int]] = {}  # of the files of each client, rising
        self.unsettled: set[tuple[int, int]] = set()
        if directory is not None:
            directory.mkdir(exist_ok=True)
            directory.chmod(0o700)  # what a client keeps tells of its data
            for file in directory.iterdir():
                if match := _NAME.fullmatch(file.name):
                    self.rounds.setdefault(int(match[1]), []).append(int(match[2]))
            self.rounds = {client: sorted(rounds) for client, rounds in self.rounds.items()}

    def get(self, client: int) -> Vectors:
        """What the client kept last; empty at first."""
        if self.directory is None:
            return self.memory.get(client, {})
        rounds = self.rounds.get(client)
        return load_file(self._file(client, rounds[-1])) if rounds else {}

    def put(self, client: int, round: int, vectors: Vectors) -> None:
        """The client keeps this from now on."""
        if self.directory is None:
            self.memory[client] = vectors
            return
        file = self._file(client, round)
        temporary = file.with_name(f"{TEMPORARY}{file.name}")
        save_file({name: vector.contiguous() for name, vector in vectors.items()}, temporary)
        temporary.chmod(0o600)
        temporary.rename(file)
        known = self.rounds.setdefault(client, [])
        if round not in known:
            known.append(round)
        self.unsettled.add((client, round))

    def settle(self, before: int) -> None:
        """Puts everything on the disk, and removes what is older than what a checkpoint of round `before` needs."""
        if self.directory is None:
            return
        for client, round in self.unsettled:
            fd = os.open(self._file(client, round), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        for client in {client for client, _ in self.unsettled}:
            needed = max((r for r in self.rounds[client] if r <= before), default=0)
            for round in [r for r in self.rounds[client] if r < needed]:
                self._file(client, round).unlink(missing_ok=True)
                self.rounds[client].remove(round)
        self.unsettled.clear()
        sync_directory(self.directory)

    def rewind(self, round: int) -> None:
        """Forgets what was kept after `round`, from where a run goes on."""
        for client, rounds in list(self.rounds.items()):
            for later in [r for r in rounds if r > round]:
                self._file(client, later).unlink(missing_ok=True)
                rounds.remove(later)
            if not rounds:
                del self.rounds[client]

    def _file(self, client: int, round: int) -> Path:
        assert self.directory is not None
        return self.directory / f"{client:06d}-{round:06d}.safetensors"


class Kept(Mapping[int, Sequence[Work]]):
    """Chunks of work, each with what its clients kept, read when the chunk is asked for: a large cohort's vectors are
    never in memory together."""

    def __init__(self, chunks: Mapping[int, Sequence[Work]], keeping: Keeping) -> None:
        self.chunks, self.keeping = chunks, keeping

    def __getitem__(self, number: int) -> Sequence[Work]:
        return [replace(work, mine=self.keeping.get(work.client)) for work in self.chunks[number]]

    def __iter__(self) -> Iterator[int]:
        return iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)
