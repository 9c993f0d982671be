"""The zoo. One family per file; the union of the config types is the registry, told apart by `kind`.

`config.build(spec)` gives a network: `forward(inputs, key=None)` -> logits [B, C], values [B, K] or token logits
[B, T, V].
"""

from core.models.cnn import CNN
from core.models.gpt import GPT
from core.models.mlp import MLP
from core.models.recurrent import Recurrent
from core.models.resnet import ResNet

ModelConfig = MLP | CNN | ResNet | Recurrent | GPT

__all__ = ["CNN", "GPT", "MLP", "ModelConfig", "Recurrent", "ResNet"]
