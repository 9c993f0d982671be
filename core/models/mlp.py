"""Multi-layer perceptron: for tables, and for images as plain vectors."""

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal

from torch import Tensor, nn

from core.data.spec import Spec
from core.models import checks
from core.models.layers import ACTIVATIONS, Activation, Dropout


@dataclass(frozen=True)
class MLP:
    """hidden: the width of each hidden layer (none at all is a linear model). Dropout follows each activation."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[int, ...] = (128, 128)
    activation: Activation = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        checks.sizes("hidden", self.hidden)
        checks.one_of("activation", self.activation, Activation)
        checks.fraction("dropout", self.dropout)

    def build(self, spec: Spec) -> "MLPNetwork":
        """A fresh network. Raises ConfigError if the data is neither a table nor images."""
        checks.fits(spec, "mlp", ("table", "class"), ("table", "real"), ("image", "class"), ("image", "real"))
        return MLPNetwork(self, prod(spec.shape), spec.outputs)


class MLPNetwork(nn.Module):
    """inputs [B, ...] -> [B, outputs]."""

    def __init__(self, config: MLP, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = (inputs, *config.hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropouts = nn.ModuleList(Dropout(config.dropout) for _ in config.hidden)
        self.head = nn.Linear(widths[-1], outputs)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, inputs: Tensor, key: Tensor | None = None) -> Tensor:
        x = inputs.flatten(1)
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            x = dropout(self.activation(layer(x)), key)
        logits: Tensor = self.head(x)
        return logits
