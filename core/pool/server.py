"""The process that forks the workers of a `ProcessPool`. It imports what they need and computes nothing."""

import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
from collections import deque
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np

from core.pool.processes import ENDED, ENDINGS, REQUEST
from core.pool.wire import Folder
from core.pool.worker import work


def main(control: str, said: str) -> None:
    """Serves the pool at the other end of `control` until that is closed; then ends all that it started."""
    for number in ENDINGS:  # sent to all processes at once, they are the pool's business, which ends us in its own way
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    setting = json.loads(said)
    sys.path[:0] = setting["path"]
    gc.disable()  # it takes a tenth of the time of importing, and finds nothing
    for name in setting["preload"]:
        with contextlib.suppress(Exception, SystemExit):  # the worker that needs it meets the same error, and says so
            importlib.import_module(name)
    gc.enable()
    gc.collect()
    gc.freeze()  # else the workers' collections write to every page that they share
    folder = Folder(setting["folders"])
    children = set[int]()
    try:
        _serve(socket.socket(fileno=int(control)), children, folder, setting["limit"])
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        folder.remove()
        for child in children:  # so that none is left when we are gone, for which the pool waits
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _serve(control: socket.socket, children: set[int], folder: Folder, limit: int) -> None:
    wake, awake = os.pipe()
    os.set_blocking(awake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(awake)
    unsaid = deque[bytes]()  # the pool listens only when it asks itself why a worker has ended
    while True:
        inputs: list[Any] = [control, wake]
        ready, can_say, _ = select.select(inputs, [control] if unsaid else [], [])
        if can_say:
            with contextlib.suppress(OSError):  # full after all, or closed
                control.send(unsaid[0], socket.MSG_DONTWAIT)
                unsaid.popleft()
        if wake in ready:
            os.read(wake, 4096)
            for pid, status in _ended():
                children.discard(pid)
                unsaid.append(ENDED.pack(pid, status))
        if control in ready:
            try:
                request, descriptors, _, _ = socket.recv_fds(control, REQUEST, 1)
            except ConnectionResetError:  # the pool has closed its end and not read all that we said
                return
            if not request:
                return
            child = os.fork()
            if not child:
                _become_worker(descriptors[0], [control.fileno(), wake, awake], json.loads(request), folder, limit)
            children.add(child)
            os.close(descriptors[0])


def _ended() -> list[tuple[int, int]]:
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(found)
    return ended


def _become_worker(
    connection: int, not_ours: list[int], setting: dict[str, Any], folder: Folder, limit: int
) -> NoReturn:
    """`not_ours`: descriptors of the server."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        for descriptor in not_ours:
            os.close(descriptor)
        os.environ["CUDA_VISIBLE_DEVICES"] = setting["gpus"]
        random.seed()  # else all workers would draw the same
        np.random.seed()
        work(Connection(connection), folder.part(setting["number"]), limit)
    finally:  # whatever it was, the server's own end is not for a worker
        os._exit(1)
