"""Plain convolutional network: convolution, norm, ReLU, pooling, and again; then one hidden layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from core.data.spec import Spec
from core.errors import ConfigError
from core.models import checks
from core.models.layers import Dropout, Norm2d, norm_2d

Pool = Literal["max", "average", "none"]


@dataclass(frozen=True)
class CNN:
    """channels: of each convolution; `pool` halves height and width after each. hidden: the layer before the head.

    hidden 0 leaves that layer out. Dropout acts before the head. An odd kernel keeps the image's size.
    """

    kind: Literal["cnn"] = "cnn"
    channels: tuple[int, ...] = (32, 64)
    kernel: int = 3
    norm: Norm2d = "group"
    pool: Pool = "max"
    hidden: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        checks.sizes("channels", self.channels)
        if not self.channels:
            raise ValueError("channels must name at least one convolution; for none use kind: mlp")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 1, got {self.kernel}")
        checks.one_of("norm", self.norm, Norm2d)
        checks.one_of("pool", self.pool, Pool)
        checks.at_least("hidden", self.hidden, 0)
        checks.fraction("dropout", self.dropout)

    def build(self, spec: Spec) -> "CNNNetwork":
        """A fresh network. Raises ConfigError if the data is not images, or they are too small for the poolings."""
        checks.fits(spec, "cnn", ("image", "class"), ("image", "real"))
        return CNNNetwork(self, self._flat_size(spec), spec)

    def _flat_size(self, spec: Spec) -> int:
        """The number of features after the last pooling."""
        _, height, width = spec.shape
        halvings = 0 if self.pool == "none" else len(self.channels)
        height, width = height >> halvings, width >> halvings
        if not height or not width:
            raise ConfigError(
                f"model.channels: {len(self.channels)} poolings leave nothing of a {spec.shape[1]}x{spec.shape[2]} "
                "image; use fewer channels, or model.pool=none"
            )
        return self.channels[-1] * height * width


POOLS: dict[Pool, Callable[[int], nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d, "none": nn.Identity}


class CNNNetwork(nn.Module):
    """inputs [B, C, H, W] -> [B, outputs]."""

    def __init__(self, config: CNN, flat_size: int, spec: Spec) -> None:
        super().__init__()
        inputs = (spec.shape[0], *config.channels[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, config.kernel, padding=config.kernel // 2, bias=config.norm == "none")
            for a, b in zip(inputs, config.channels, strict=True)
        )
        self.norms = nn.ModuleList(norm_2d(config.norm, channels) for channels in config.channels)
        self.pool = POOLS[config.pool](2)
        self.hidden = nn.Linear(flat_size, config.hidden) if config.hidden else None
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(config.hidden or flat_size, spec.outputs)

    def forward(self, inputs: Tensor, key: Tensor | None = None) -> Tensor:
        x = inputs
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = self.pool(F.relu(norm(convolution(x))))
        x = x.flatten(1)
        if self.hidden is not None:
            x = F.relu(self.hidden(x))
        logits: Tensor = self.head(self.dropout(x, key))
        return logits
