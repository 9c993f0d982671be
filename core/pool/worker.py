"""What a process of a `ProcessPool` does: the items it is given, one after the other."""

import json
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from core.pool.outcome import NotSent, attempt, line_of
from core.pool.processes import DROP, FUNCTION
from core.pool.protocol import Failure
from core.pool.shared import ProcessShared, forget
from core.pool.wire import Folder, opened, seal


def work(connection: Connection, folder: Folder, limit: int) -> None:
    """Works until the pool closes its end. `limit`: bytes that a result may have."""
    inbox = SimpleQueue[bytes]()
    # Always reading, so that the pool never waits for this process to finish an item before it can send the next
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    connection.send_bytes(str(os.getpid()).encode())
    fn: Callable[[Any], Any] = _nothing
    begun = folder.counter()
    while True:
        message = inbox.get()
        kind, content = message[:1], message[1:]
        if kind == DROP:
            for file in json.loads(content):
                forget(file)
            continue
        begun.up()
        if kind == FUNCTION:
            fn, answer = _loaded(content)
        else:
            answer = _done(fn, content, limit)
        connection.send_bytes(_sealed(answer, folder))


def _read(connection: Connection, inbox: "SimpleQueue[bytes]") -> None:
    try:
        while True:
            inbox.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)  # the pool has gone, in whatever way


def _nothing(item: Any) -> None:
    raise AssertionError("an item came before its function")


def _loaded(content: bytes) -> tuple[Callable[[Any], Any], str | Failure]:
    try:
        fn = opened(content)
        return (fn.get() if isinstance(fn, ProcessShared) else fn), f"process {os.getpid()} on this machine"
    except Exception as error:  # noqa: BLE001 - the pool raises it
        return _nothing, Failure.of(error)


def _done(fn: Callable[[Any], Any], content: bytes, limit: int) -> Any:
    try:
        item = opened(content)
    except Exception as error:  # noqa: BLE001 - the pool says it
        return NotSent(line_of(error))
    return attempt(fn, item, limit)


def _sealed(answer: Any, folder: Folder) -> bytes:
    try:
        return seal(answer, folder)
    except Exception as error:  # noqa: BLE001 - the pool says it
        return seal(NotSent(line_of(error)), None)
