"""Many small fits at once: ensembles, cross-validation, search, evolution and federated cohorts stand on this.

    outcomes = fit_all([Member("a", recipe, shard), Member("b", override(recipe, {"optimizer.lr": 0.1}), shard)])

`core.train.fit`, one member after the other, defines what is right (`alone.py`). `Population` lifts the step of one
member to many with vmap; `lockstep.py` fits with it. `executor.py` says which of both is faster.
"""

from core.population.cohort import Cohort, Job, Trained
from core.population.executor import Backend
from core.population.fit import fit_all
from core.population.frame import Frame
from core.population.member import Member, Outcome, Signature
from core.population.population import Population

__all__ = [
    "Backend",
    "Cohort",
    "Frame",
    "Job",
    "Member",
    "Outcome",
    "Population",
    "Signature",
    "Trained",
    "fit_all",
]
