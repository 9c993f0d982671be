"""Optimizers and schedules as configs, and optimizer state as named tensors.

The unions `OptimizerConfig` and `ScheduleConfig` are the registries: a new one is a dataclass, and one name here.
"""

from core.optim.configs import SGD, Adam, AdamW, Lion, Muon, RMSprop
from core.optim.schedule import Constant, Cosine, Linear, WarmupStableDecay, set_lr
from core.optim.state import flatten, restore

OptimizerConfig = SGD | Adam | AdamW | RMSprop | Lion | Muon
ScheduleConfig = Constant | Linear | Cosine | WarmupStableDecay

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Linear",
    "Lion",
    "Muon",
    "OptimizerConfig",
    "RMSprop",
    "ScheduleConfig",
    "WarmupStableDecay",
    "flatten",
    "restore",
    "set_lr",
]
