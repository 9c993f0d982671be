"""Persistent workers to spread many small pieces of work over.

    with ProcessPool(workers=4) as pool:
        weights = pool.share(model.state_dict())
        for done in pool.run(functools.partial(score, weights), clients): ...

Federated cohorts, search slots, ensembles and cross-validation hand a function and its items to a `WorkerPool` and take
each result as it finishes. `LocalPool` is this process and defines what is right, `ProcessPool` the processors of this
machine, `cluster.pool.RayPool` many machines.
"""

from core.pool.local import LocalPool
from core.pool.processes import ProcessPool
from core.pool.protocol import Done, Failure, K, Key, Shared, WorkerPool
from core.pool.times import ItemTimes

__all__ = ["Done", "Failure", "ItemTimes", "K", "Key", "LocalPool", "ProcessPool", "Shared", "WorkerPool"]
