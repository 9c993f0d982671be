"""Waits until a cluster that others use too has room."""

import threading
import time
from collections.abc import Callable, Mapping

from cluster.session import require_ray

POLL_S = 0.25
PATIENCE_S = 2.0  # a cluster that has just been joined, or a run that has just ended, may not yet show what is free


def wait_for_room(needs: Mapping[str, float], say: Callable[[str], None], stopping: Callable[[], bool]) -> bool:
    """Waits until the cluster has so much of each resource free, and says what it waits for; False if it was asked to
    stop. Must be called within a session."""
    said, began = "", time.monotonic()
    while waits := _short(needs):
        require_ray()
        if stopping():
            return False
        if waits != said and time.monotonic() - began > PATIENCE_S:
            say(f"waiting for {waits}")
            said = waits
        threading.Event().wait(POLL_S)
    return True


def _short(needs: Mapping[str, float]) -> str:
    """ "2 CPUs, 0 of 4 free": what is not there; empty if all is."""
    import ray

    free: Mapping[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    there: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    short = []
    for name, needed in needs.items():
        if (now := free.get(name, 0.0)) < needed:
            short.append(f"{needed:g} {name}{'' if needed == 1 else 's'}, {now:g} of {there.get(name, 0.0):g} free")
    return " and ".join(short)
