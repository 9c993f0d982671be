"""Hostile clients: some poison the data they train on, some forge what they send, some see all and agree on it.

Which clients attack, and what each does, are pure functions of the run's seed. An attack is one config with all that an
engine asks for: `poison` before a client trains, `forge` after it, `forge_together` when all replies are there.
"""

from federated.attacks.forging import Gaussian, InnerProduct, LittleIsEnough, SignFlip, largest_z
from federated.attacks.poisoning import Backdoor, LabelFlip

AttackConfig = LabelFlip | Backdoor | SignFlip | Gaussian | LittleIsEnough | InnerProduct

__all__ = [
    "AttackConfig", "Backdoor", "Gaussian", "InnerProduct", "LabelFlip", "LittleIsEnough", "SignFlip", "largest_z",
]  # fmt: skip
