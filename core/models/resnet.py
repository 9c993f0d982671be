"""Residual network (arXiv:1512.03385) of basic blocks. Group norm by default: it treats every example on its own.

Each stage has twice the channels and half the height and width of the one before it.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from core.data.spec import Spec
from core.models import checks
from core.models.layers import Dropout, Norm2d, norm_2d

Stem = Literal["small", "large"]

MOST_STAGES = 16  # each halves the image and doubles the channels


@dataclass(frozen=True)
class ResNet:
    """width: channels of the first stage; depth: blocks in each stage. Dropout acts before the head.

    stem: small is one 3x3 convolution, for images up to about 64 pixels; large is ImageNet's 7x7 with stride 2 and a
    pooling. ResNet-18 is width 64, depth 2, stages 4, stem large.
    """

    kind: Literal["resnet"] = "resnet"
    width: int = 32
    depth: int = 2
    stages: int = 3
    norm: Norm2d = "group"
    stem: Stem = "small"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        checks.at_least("width", self.width, 1)
        checks.count("stages", self.stages, MOST_STAGES)
        checks.count("depth", self.depth, checks.MOST_LAYERS // self.stages)
        checks.one_of("norm", self.norm, Norm2d)
        checks.one_of("stem", self.stem, Stem)
        checks.fraction("dropout", self.dropout)

    def build(self, spec: Spec) -> "ResNetwork":
        """A fresh network. Raises ConfigError if the data is not images."""
        checks.fits(spec, "resnet", ("image", "class"), ("image", "real"))
        return ResNetwork(self, spec)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut. [B, C, H, W] -> [B, C', H/stride, W/stride]."""

    def __init__(self, inputs: int, channels: int, stride: int, norm: Norm2d) -> None:
        super().__init__()
        bias = norm == "none"
        self.convolution1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=bias)
        self.norm1 = norm_2d(norm, channels)
        self.convolution2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=bias)
        self.norm2 = norm_2d(norm, channels)
        same = inputs == channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, channels, 1, stride, bias=bias)
        self.shortcut_norm = None if same else norm_2d(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.convolution1(x)))
        y = self.norm2(self.convolution2(y))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return F.relu(x + y)


class ResNetwork(nn.Module):
    """inputs [B, C, H, W] -> [B, outputs]."""

    def __init__(self, config: ResNet, spec: Spec) -> None:
        super().__init__()
        small, bias = config.stem == "small", config.norm == "none"
        kernel, stride = (3, 1) if small else (7, 2)
        self.stem = nn.Conv2d(spec.shape[0], config.width, kernel, stride, kernel // 2, bias=bias)
        self.stem_norm = norm_2d(config.norm, config.width)
        self.stem_pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        blocks, inputs = [], config.width
        for stage in range(config.stages):
            channels = config.width << stage
            for index in range(config.depth):
                blocks.append(Block(inputs, channels, 2 if stage and not index else 1, config.norm))
                inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(inputs, spec.outputs)
        self.apply(_initialize)

    def forward(self, inputs: Tensor, key: Tensor | None = None) -> Tensor:
        x = self.stem_pool(F.relu(self.stem_norm(self.stem(inputs))))
        x = self.blocks(x).mean(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(x, key))
        return logits


def _initialize(module: nn.Module) -> None:
    """He's initialization (arXiv:1502.01852); a block starts as its shortcut (arXiv:1706.02677, section 5.1)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, Block):
        last = module.convolution2 if isinstance(module.norm2, nn.Identity) else module.norm2
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
