"""Torch without its compiler for as long as there is none.

With the first optimizer and its first step torch imports its compiler, torch._dynamo, which takes a second, only to
tell it to leave some methods alone (torch/_compile.py, and `_use_grad_for_differentiable` in torch/optim/optimizer.py).
Here it is told so when it is there.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch._compile import _disable_dynamo
from torch.optim import Optimizer, optimizer

COMPILER = "torch._dynamo"
TOLD = "__dynamo_disable"  # the attribute in which torch keeps what it made of a method


def spare_the_compiler() -> None:
    """Makes it so for all of torch's optimizers in this process. A second call changes nothing."""
    for method in _of(Optimizer, _disable_dynamo):
        if not hasattr(method.__wrapped__, TOLD):
            setattr(method.__wrapped__, TOLD, _told_later(method.__wrapped__))
    for kind in vars(torch.optim).values():
        if isinstance(kind, type) and issubclass(kind, Optimizer):
            for method in _of(kind, optimizer._use_grad_for_differentiable):
                setattr(kind, method.__name__, _step_of(method))


def _of(kind: type, decorator: Any) -> Iterator[Any]:
    """The methods that a class has from a decorator."""
    made = {constant for constant in decorator.__code__.co_consts if hasattr(constant, "co_name")}
    return (m for m in list(vars(kind).values()) if isinstance(m, FunctionType) and m.__code__ in made)


def _told_later(plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        if COMPILER not in sys.modules:
            return plain(*arguments, **options)
        told: Any = torch._dynamo.disable(plain, wrapping=False)
        setattr(plain, TOLD, told)
        return told(*arguments, **options)

    return call


def _step_of(method: Any) -> Callable[..., Any]:
    """What torch's own does: the step with or without gradients of its own."""
    plain = method.__wrapped__

    def step(self: Optimizer, *arguments: Any, **options: Any) -> Any:
        if COMPILER in sys.modules:
            return method(self, *arguments, **options)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return plain(self, *arguments, **options)

    return functools.update_wrapper(step, plain)
