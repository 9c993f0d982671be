"""Ctrl-C: once finishes the step, saves and ends; twice ends at once. SIGTERM, which schedulers send, counts the same,
and SIGHUP, which a closed terminal sends, unless the command was started to outlive it (`nohup`).

A thread reads the signals from a pipe, so that a second one is heard while the main thread is deep inside torch or Ray.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

INTERRUPTED = 130  # exit code, as of a shell whose command got SIGINT
PATIENCE_S = 2.0  # that `abort` may take, should what it needs be held by the main thread
# In the command lines of processes that end by themselves, and remove files then: a process pool's server and workers,
# and who ends an embedded Ray.
KEEPERS = ("core.pool.server", os.path.join("cluster", "keeper.py"))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopping:
    """Called, it says whether the user asked to stop."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self) -> bool:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is not _heard:
            signal.signal(signal.SIGTERM, _heard)  # ray.init puts its own handler there, which ends the process
        return self.asked.is_set()


@contextlib.contextmanager
def interruptible(first: Callable[[], None], abort: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether to stop. `first` runs at the first signal, `abort` at the second, and then
    the process ends with 130: no clean-up, because the main thread may be stuck. Files are whole at any time, and the
    processes of an embedded Ray are ended too.

    In a thread other than the main one signals cannot be caught, and nothing ever asks to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    stopping, (reading, writing) = Stopping(), os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(target=_listen, args=(reading, stopping.asked, first, abort), daemon=True)
    wanted = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _heard) for number in wanted}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread.start()
    try:
        yield stopping
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)  # ends the thread
        thread.join()
        os.close(reading)


def _heard(number: int, frame: object) -> None:
    """A handler must exist for the signal to reach the pipe; the thread does the rest."""


def _listen(reading: int, asked: threading.Event, first: Callable[[], None], abort: Callable[[], None]) -> None:
    while signals := os.read(reading, 1):
        if signals[0] not in SIGNALS:
            continue
        if not asked.is_set():
            asked.set()
            first()
            continue
        patience = threading.Timer(PATIENCE_S, os._exit, [INTERRUPTED])  # should `abort` not come back
        patience.daemon = True
        patience.start()
        try:
            abort()
        finally:
            _end_children()
            os._exit(INTERRUPTED)


def _end_children() -> None:
    """Ends what this process has started, but not what ends by itself."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if not any(keeper in " ".join(child.cmdline()) for keeper in KEEPERS):
                child.kill()
