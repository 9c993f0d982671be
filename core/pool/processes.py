"""`ProcessPool`: persistent processes of this machine, up in the time of one import.

A server, started once, imports what the workers need and forks them off: so a worker, also one that replaces a dead
one, is there in a few milliseconds and shares the memory of what was imported. The server never computes, since a
process that has cannot be forked safely.
"""

import json
import math
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from core.errors import ConfigError, HanseError, ResourceError
from core.pool.crew import Crew, Member
from core.pool.outcome import Lost, NotSent, Outcome, line_of
from core.pool.protocol import require_open
from core.pool.shared import ProcessShared, forget
from core.pool.wire import SMALL, Counter, Folder, opened, publish, require_sendable, seal

T = TypeVar("T")
FUNCTION, ITEM, DROP = b"F", b"I", b"D"  # what a message to a worker begins with
REQUEST = 4096  # bytes of what the server is asked
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what a terminal or a system sends to all processes at once
ENDED = struct.Struct("<ii")  # a process and its status, of which the server tells
GONE = Lost("it had ended before", began=False)
STATUS_S = 0.5  # how long the cause of a death is waited for
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from core.pool.server import main; main(*sys.argv[2:])"
)
# glibc's allocator gives large blocks back after each step, and gets them anew page by page
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


@dataclass(eq=False)
class Order:
    """What a worker was told to do, and what came of it."""

    outcome: Outcome | str | None = None


@dataclass(eq=False)
class Hand:
    """The connection to a worker: what it has not answered yet, in order, and what it shall forget. `begun`: how many
    orders it has begun, so that of a dead one it is known which it was at."""

    connection: Connection
    slot: int
    folder: Folder
    begun: Counter
    answered: int = 0
    pid: int | None = None
    orders: deque[Order] = field(default_factory=deque)
    dropped: list[str] = field(default_factory=list)
    is_gone: bool = False


class ProcessPool(Crew):
    """Workers that stay, each a process of this machine; see `core.pool.crew.Crew` for what they promise.

    Torch in a worker uses `cpus_per_worker` threads. `gpus_per_worker`: its share of this machine's GPUs, and with 0 it
    sees none. `preload`: modules that are imported once for all workers; what they do when imported must bear a
    fork, and they see no GPU. What workers print goes to standard error. On Linux only: elsewhere no process that has
    imported torch may be forked.
    """

    def __init__(
        self,
        workers: int,
        *,
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float = 0.0,
        preload: Sequence[str] = (),
        path: Sequence[str] = (),
        max_result_bytes: int = 1 << 30,
        start_timeout_s: float = 120.0,
    ) -> None:
        """`path`: where `preload` is looked for before all other places. Raises ResourceError if the machine has not
        what the workers need."""
        super().__init__(workers, max_result_bytes, start_timeout_s)
        if sys.platform != "linux":
            raise ResourceError(f"pool: processes cannot be forked safely on {sys.platform}; use a RayPool")
        _require_fit(workers, cpus_per_worker, gpus_per_worker)
        self._needs = cpus_per_worker, gpus_per_worker
        self._folder = Folder.make()
        self._statuses: dict[int, int] = {}  # of processes that have ended
        self._answered = selectors.DefaultSelector()
        self.shares: set[str] = set()
        self._is_serving = False
        self._server, self._control = self._served(max(1, int(cpus_per_worker)), preload, path)
        self.reconcile()

    def _served(
        self, threads: int, preload: Sequence[str], path: Sequence[str]
    ) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, its = socket.socketpair()
        command = [sys.executable, *subprocess._args_from_interpreter_flags(), "-P", "-c", START]  # type: ignore[attr-defined]
        said = {"preload": [*preload], "path": [*path], "folders": self._folder.paths, "limit": self.max_result_bytes}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)  # they would end it before it can ignore them
        try:
            with its:
                server = subprocess.Popen(
                    [*command, json.dumps(sys.path), str(its.fileno()), json.dumps(said)],
                    env={**ALLOCATOR, **os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""},
                    pass_fds=[its.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return server, ours

    def resize(self, workers: int) -> None:
        _require_fit(workers, *self._needs)
        super().resize(workers)

    def hire(self, number: int) -> Member:
        taken = {member.hand.slot for member in self.members if not member.is_leaving}
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        folder = self._folder.part(number)
        folder.open()
        ours, its = socket.socketpair()
        request = json.dumps({"number": number, "gpus": _visible(slot, self._needs[1])}).encode().ljust(REQUEST)
        with its, suppress(OSError):  # a server that is gone shows in the worker's end
            socket.send_fds(self._control, [request], [its.fileno()])
        hand = Hand(Connection(ours.detach()), slot, folder, folder.counter())
        self._answered.register(hand.connection, selectors.EVENT_READ, hand)
        return Member(number, hand)

    def dismiss(self, member: Member) -> None:
        hand: Hand = member.hand
        while not hand.is_gone and hand.connection.poll(0):  # one that has ended long ago is no longer that process
            self._take(hand)
        if not hand.is_gone:
            self._end(hand)

    def _end(self, hand: Hand) -> None:
        if hand.pid:
            with suppress(ProcessLookupError):
                os.kill(hand.pid, signal.SIGKILL)
        self._leave(hand, Lost("it was ended"))

    def _leave(self, hand: Hand, why: Lost) -> None:
        """A worker is gone: nothing that it has not answered will be answered."""
        hand.is_gone = True
        self._answered.unregister(hand.connection)
        hand.connection.close()
        hand.folder.remove()
        if hand.orders and hand.begun.value > hand.answered:
            hand.orders.popleft().outcome = why
        while hand.orders:
            hand.orders.popleft().outcome = replace(why, began=False)
        hand.begun.close()

    # --- what is sent ----------------------------------------------------------------------------------------------

    def share(self, value: T) -> "ProcessShared[T]":
        """`value` as a file in memory, which all workers map."""
        require_open(self.is_open)
        try:
            file = publish(value, self._folder)
        except OSError as error:
            raise ResourceError(
                f"share: the value does not fit into memory or on the disk ({line_of(error)})"
            ) from None
        except Exception as error:
            raise _refusal("share: the value", error) from error
        self.shares.add(file)
        shared: ProcessShared[T] = ProcessShared(file, self)
        # The workers hear of it with their next item: a finalizer may run at any time, also in the middle of a call
        weakref.finalize(shared, _release, weakref.ref(self), file).atexit = False
        return shared

    def release(self, file: str) -> None:
        """Frees a shared value; the workers hear of it with their next item."""
        if file in self.shares:
            self.shares.discard(file)
            forget(file)
            Path(file).unlink(missing_ok=True)
            for member in self.members:
                member.hand.dropped.append(file)

    def packed(self, fn: Callable[[Any], Any]) -> "tuple[bytes, ProcessShared[Any] | None]":
        """With what it is bound to as a shared value, if that is large; it lives as long as this."""
        try:
            message = seal(fn, None)
            if len(message) <= SMALL:
                return FUNCTION + message, None
            shared = self.share(fn)
            return FUNCTION + seal(shared, None), shared
        except Exception as error:
            hint = "; define it at the top level of a module, and bind what it needs with functools.partial"
            raise _refusal("run: the function", error, hint) from error

    def require_sendable(self, items: Mapping[Any, Any]) -> None:
        for key, item in items.items():
            try:
                require_sendable(item)
            except Exception as error:
                raise _refusal(f"run: item {key}", error, "; keep to plain values, arrays and tensors") from error

    def begin(self, member: Member, function: "tuple[bytes, ProcessShared[Any] | None]") -> Order:
        return self._told(member.hand, function[0])

    def work(self, member: Member, item: Any) -> Order:
        hand: Hand = member.hand
        if hand.is_gone:
            return Order(GONE)
        if hand.dropped:
            gone, hand.dropped = hand.dropped, []
            self._send(hand, DROP + json.dumps(gone).encode())
        try:
            message = ITEM + seal(item, hand.folder)
        except Exception as error:  # noqa: BLE001 - the run names the item
            return Order(NotSent(line_of(error)))
        return self._told(hand, message)

    def _told(self, hand: Hand, message: bytes) -> Order:
        if hand.is_gone:
            return Order(GONE)
        hand.orders.append(order := Order())
        self._send(hand, message)
        return order

    def _send(self, hand: Hand, message: bytes) -> None:
        try:
            with suppress(OSError):  # its end is noticed when it is read from
                hand.connection.send_bytes(message)
        except BaseException:  # half a message, and nobody who waits for its answer
            self._end(hand)
            raise

    # --- what comes back -------------------------------------------------------------------------------------------

    def wait(self, calls: Sequence[Order], timeout_s: float) -> list[Order]:
        self._read(0.0)
        done = [call for call in calls if call.outcome is not None]
        if not done:
            self._read(timeout_s)
            done = [call for call in calls if call.outcome is not None]
        return done

    def outcomes(self, calls: Sequence[Order]) -> list[Outcome | str]:
        return [call.outcome for call in calls if call.outcome is not None]

    def no_room(self) -> str:
        return "this machine may be short of memory or processes"

    def _read(self, timeout_s: float) -> None:
        """Takes in what the workers have sent; waits for the first of it."""
        for key, _ in self._answered.select(timeout_s):
            self._take(key.data)

    def _take(self, hand: Hand) -> None:
        """One message of a worker, or its end."""
        try:
            message = hand.connection.recv_bytes()
        except (EOFError, OSError):
            self._leave(hand, Lost(self._cause(hand)))
            return
        if hand.pid is None:
            hand.pid, self._is_serving = int(message), True
        else:
            hand.answered += 1
            hand.orders.popleft().outcome = _answer(message)

    def _cause(self, hand: Hand) -> str:
        """Why a process has ended, as the server heard it."""
        if hand.pid is None:
            ended = self._server.poll() is not None
            return f"its process could not be started{'; the one that starts them has ended' if ended else ''}"
        deadline = time.monotonic() + STATUS_S
        while hand.pid not in self._statuses and (rest := deadline - time.monotonic()) > 0:
            if not self._hear(rest):
                break
        status = self._statuses.pop(hand.pid, None)
        if status is None:
            return "its process ended unexpectedly"
        if os.WIFSIGNALED(status):
            said_by = signal.Signals(os.WTERMSIG(status)).name
            memory = ", as the system does when memory runs out" if said_by == "SIGKILL" else ""
            return f"its process ended unexpectedly by {said_by}{memory}"
        return f"its process ended unexpectedly with status {os.waitstatus_to_exitcode(status)}"

    def _hear(self, timeout_s: float) -> bool:
        """Takes in what the server says of one process that has ended; False if it says nothing."""
        self._control.settimeout(timeout_s)
        try:
            said = self._control.recv(ENDED.size)
        except OSError:
            said = b""
        self._control.settimeout(None)
        if said:
            pid, status = ENDED.unpack(said)
            self._statuses[pid] = status
        return bool(said)

    def close(self) -> None:
        super().close()
        for file in list(self.shares):
            self.release(file)
        self._answered.close()
        with suppress(OSError):  # it has ended already
            self._control.shutdown(socket.SHUT_RDWR)  # a fork of this process may have the socket too
        self._control.close()  # which ends the server, once its workers have ended
        if not self._is_serving:
            self._server.kill()  # it may be in the middle of its imports
        self._server.wait()
        self._folder.remove()


def _release(pool: "weakref.ref[ProcessPool]", file: str) -> None:
    if there := pool():
        there.release(file)


def _answer(message: bytes) -> Outcome | str:
    try:
        answer: Outcome | str = opened(message)
        return answer
    except Exception as error:  # noqa: BLE001 - the run names the item
        return NotSent(line_of(error))


def _refusal(what: str, error: Exception, hint: str = "") -> HanseError:
    if isinstance(error, HanseError):
        return error
    return ConfigError(f"{what} cannot be sent to a worker ({line_of(error)}){hint}")


def _visible(slot: int, share: float) -> str:
    """The GPUs of a worker as CUDA_VISIBLE_DEVICES names them: whole ones, or one with others."""
    if not share:
        return ""
    count = math.ceil(share)
    first = slot // _sharers(share) * count
    return ",".join(_gpus()[first : first + count])


def _sharers(share: float) -> int:
    """How many workers have a GPU together."""
    return int(1 / share + 1e-9) if share < 1 else 1  # 1 / share may fall just short of a whole number


def _gpus() -> list[str]:
    """Those that this process sees."""
    import torch

    there = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there.split(",") if there else [str(i) for i in range(torch.cuda.device_count())]


def _require_fit(workers: int, cpus: float, gpus: float) -> None:
    """ConfigError if there can be no such worker, ResourceError if this machine has not what they need."""
    for name, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed < 0 or (name == "GPU" and needed > 1 and needed % 1):
            raise ConfigError(f"workers: each needs {needed:g} {name}; give a share of one or a whole number")
    if workers * cpus > (there := os.cpu_count() or 1):
        raise ResourceError(
            f"workers: they ask for {workers * cpus:g} CPUs and this machine has {there}; use fewer workers, a smaller "
            f"cpus_per_worker, or a Ray cluster"
        )
    if gpus and math.ceil(workers / _sharers(gpus)) * math.ceil(gpus) > (there := len(_gpus())):
        raise ResourceError(
            f"workers: there is no room for {workers} with {gpus:g} GPU each, this machine has {there}; use fewer "
            f"workers, a smaller gpus_per_worker, or a Ray cluster"
        )
