"""Optimizer configs: frozen numbers with range checks, and `build`, which makes one `torch.optim.Optimizer` of them.

Every param group carries `base_lr`, the rate before the schedule. Frozen parameters are left out. Weight decay acts on
matrices and larger only, unless `decay_vectors`: biases and norm gains have no reason to be small.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from core.errors import ConfigError
from core.optim.lion import LionOptimizer
from core.optim.muon import MuonOptimizer
from core.sharding import is_sharded
from core.unhurried import spare_the_compiler

spare_the_compiler()
Named = Iterable[tuple[str, nn.Parameter]]
Betas = tuple[float, float]
Group = dict[str, Any]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, plain unless `momentum` is above 0. Weight decay is added to the gradient (L2)."""

    kind: Literal["sgd"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_vectors: bool = False

    def __post_init__(self) -> None:
        _check_positive(lr=self.lr)
        _check_fraction(momentum=self.momentum)
        _check_not_negative(weight_decay=self.weight_decay)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")

    def build(self, named_parameters: Named) -> torch.optim.Optimizer:
        """One optimizer over the parameters that train. ConfigError if none does."""
        groups = _groups(named_parameters, self.lr, self.weight_decay, self.decay_vectors)
        sharded = any(is_sharded(p) for group in groups for p in group["params"])
        fused = None if sharded else _can_fuse(groups)  # torch 2.13 has fused SGD for plain tensors only
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused)


@dataclass(frozen=True)
class Adam:
    """Adam (arXiv 1412.6980). Weight decay is added to the gradient (L2); AdamW is the one that decouples it."""

    kind: Literal["adam"] = "adam"
    lr: float = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_vectors: bool = False

    def __post_init__(self) -> None:
        _check_positive(lr=self.lr, eps=self.eps)
        _check_betas(self.betas)
        _check_not_negative(weight_decay=self.weight_decay)

    def build(self, named_parameters: Named) -> torch.optim.Optimizer:
        """One optimizer over the parameters that train. ConfigError if none does."""
        groups = _groups(named_parameters, self.lr, self.weight_decay, self.decay_vectors)
        return torch.optim.Adam(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=_can_fuse(groups))


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    lr: float = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_vectors: bool = False

    def __post_init__(self) -> None:
        _check_positive(lr=self.lr, eps=self.eps)
        _check_betas(self.betas)
        _check_not_negative(weight_decay=self.weight_decay)

    def build(self, named_parameters: Named) -> torch.optim.Optimizer:
        """One optimizer over the parameters that train. ConfigError if none does."""
        groups = _groups(named_parameters, self.lr, self.weight_decay, self.decay_vectors)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=_can_fuse(groups))


@dataclass(frozen=True)
class RMSprop:
    """RMSprop as in torch.optim: `alpha` smooths the squared gradient; weight decay is added to the gradient (L2)."""

    kind: Literal["rmsprop"] = "rmsprop"
    lr: float = 1e-3
    alpha: float = 0.99
    momentum: float = 0.0
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_vectors: bool = False

    def __post_init__(self) -> None:
        _check_positive(lr=self.lr, eps=self.eps)
        _check_fraction(alpha=self.alpha, momentum=self.momentum)
        _check_not_negative(weight_decay=self.weight_decay)

    def build(self, named_parameters: Named) -> torch.optim.Optimizer:
        """One optimizer over the parameters that train. ConfigError if none does."""
        groups = _groups(named_parameters, self.lr, self.weight_decay, self.decay_vectors)
        # torch has no fused RMSprop; its foreach form costs two thirds of the plain loop's time on a small model
        return torch.optim.RMSprop(
            groups, lr=self.lr, alpha=self.alpha, momentum=self.momentum, eps=self.eps, foreach=True
        )


@dataclass(frozen=True)
class Lion:
    """Lion (arXiv 2302.06675): the sign of a momentum. Wants a 3 to 10 times smaller lr than AdamW, and as much more
    weight decay."""

    kind: Literal["lion"] = "lion"
    lr: float = 1e-4
    betas: Betas = (0.9, 0.99)
    weight_decay: float = 0.1
    decay_vectors: bool = False

    def __post_init__(self) -> None:
        _check_positive(lr=self.lr)
        _check_betas(self.betas)
        _check_not_negative(weight_decay=self.weight_decay)

    def build(self, named_parameters: Named) -> torch.optim.Optimizer:
        """One optimizer over the parameters that train. ConfigError if none does."""
        groups = _groups(named_parameters, self.lr, self.weight_decay, self.decay_vectors)
        return LionOptimizer(groups, lr=self.lr, betas=self.betas)


@dataclass(frozen=True)
class Muon:
    """Muon for hidden matrices and convolutions, AdamW for the rest: vectors, embeddings and output heads.

    Muon's step is scaled so that one learning rate and one weight decay, tuned for AdamW, serve both halves
    (arXiv 2502.16982, section 2.2). Embeddings and heads are told by their names: see `is_hidden_matrix`.
    """

    kind: Literal["muon"] = "muon"
    lr: float = 1e-3
    momentum: float = 0.95
    nesterov: bool = True
    betas: Betas = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_vectors: bool = False

    def __post_init__(self) -> None:
        _check_positive(lr=self.lr, eps=self.eps)
        _check_fraction(momentum=self.momentum)
        _check_betas(self.betas)
        _check_not_negative(weight_decay=self.weight_decay)

    def build(self, named_parameters: Named) -> torch.optim.Optimizer:
        """One optimizer over the parameters that train. ConfigError if no hidden matrix does."""
        named = _trainable(named_parameters)
        matrices = [(name, p) for name, p in named if is_hidden_matrix(name, p)]
        rest = [(name, p) for name, p in named if not is_hidden_matrix(name, p)]
        if not matrices:
            raise ConfigError("optimizer.kind: muon finds no hidden matrix to train in this model; use adamw")
        groups = _groups(matrices, self.lr, self.weight_decay, self.decay_vectors)
        groups[0]["orthogonal"] = True
        if rest:
            groups += _groups(rest, self.lr, self.weight_decay, self.decay_vectors)
        return MuonOptimizer(
            groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, betas=self.betas, eps=self.eps
        )


_EMBEDDING = re.compile(r"embed|^(positions|wte|wpe)$")  # wte, wpe: GPT-2's names for tokens and positions
_HEADS = {"head", "lm_head", "classifier", "logits", "score"}


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon trains this parameter: 2 or more dimensions, and neither an embedding nor an output head.

    An embedding has a module with `embed` in its name, or called positions, wte or wpe; a head's own module is called
    head, lm_head, classifier, logits or score.
    """
    *modules, _ = name.lower().split(".")
    if parameter.ndim < 2 or any(_EMBEDDING.search(module) for module in name.lower().split(".")):
        return False
    return not (modules and modules[-1] in _HEADS)


def _trainable(named_parameters: Named) -> list[tuple[str, nn.Parameter]]:
    named = [(name, p) for name, p in named_parameters if p.requires_grad]
    if not named:
        raise ConfigError("optimizer: the model has no parameter to train; is everything in freeze?")
    return named


def _groups(named_parameters: Named, lr: float, weight_decay: float, decay_vectors: bool) -> list[Group]:
    """One group if all parameters decay alike, else two: every group costs its own kernel launches."""
    parameters = [p for _, p in _trainable(named_parameters)]
    decayed = [p for p in parameters if decay_vectors or weight_decay == 0 or p.ndim >= 2]
    rest = [p for p in parameters if not (decay_vectors or weight_decay == 0 or p.ndim >= 2)]
    both = [(decayed, weight_decay), (rest, 0.0)]
    return [{"params": ps, "weight_decay": decay, "lr": lr, "base_lr": lr} for ps, decay in both if ps]


def _can_fuse(groups: list[Group]) -> bool | None:
    """Whether torch's fused kernels take these parameters; None leaves the choice to torch.

    Measured on one CPU thread, 12 parameters: fused AdamW 0.22 ms a step, foreach 0.52 ms, torch's default 0.87 ms.
    """
    parameters = [p for group in groups for p in group["params"]]
    fits = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return True if fits else None


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value}")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or more and finite, got {value}")


def _check_fraction(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")


def _check_betas(betas: Betas) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be in [0, 1), got {betas}")
