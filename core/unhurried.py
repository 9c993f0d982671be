"""Torch without its compiler for as long as there is none.

With the first optimizer, its first step and the first FLOPs that it counts, torch imports its compiler, torch._dynamo,
which takes a second, only to tell it to leave some methods alone (torch/_compile.py, and
`_use_grad_for_differentiable` in torch/optim/optimizer.py). Here it is told so when it is there.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from types import FunctionType
from typing import Any

import torch
import torch._refs
from torch._compile import _disable_dynamo
from torch.optim import Optimizer, optimizer
from torch.utils.flop_counter import _FlopCounterMode

COMPILER = "torch._dynamo"
TOLD = "__dynamo_disable"  # the attribute in which torch keeps what it made of a method


def spare_the_compiler() -> None:
    """Makes it so in this process for all of torch's optimizers, and for its counter of FLOPs with the operators that
    it takes apart. A second call changes nothing."""
    holders = (Optimizer, _FlopCounterMode, torch._refs, torch._refs.nn.functional, torch._refs.special)
    functions = chain.from_iterable(vars(holder).values() for holder in holders)
    for function in _of(chain.from_iterable(map(_layers, functions)), _disable_dynamo):
        for plain in _wrapped(function):
            if not hasattr(plain, TOLD):
                setattr(plain, TOLD, _told_later(plain))
    for kind in vars(torch.optim).values():
        if isinstance(kind, type) and issubclass(kind, Optimizer):
            for method in _of(list(vars(kind).values()), optimizer._use_grad_for_differentiable):
                setattr(kind, method.__name__, _step_of(method))


def _of(functions: Iterable[Any], decorator: Any) -> Iterator[Any]:
    """Those that a decorator has made."""
    made = {constant for constant in decorator.__code__.co_consts if hasattr(constant, "co_name")}
    return (function for function in functions if isinstance(function, FunctionType) and function.__code__ in made)


def _layers(function: Any) -> Iterator[Any]:
    """A function, and what its decorators were given."""
    yield function
    for plain in _wrapped(function):
        yield from _layers(plain)


def _wrapped(function: Any) -> Iterator[FunctionType]:
    """The functions that a function calls from its closure. Its `__wrapped__` may be another one: torch sets that to
    the operator's definition."""
    cells = getattr(function, "__closure__", None) or ()
    return (cell.cell_contents for cell in cells if isinstance(cell.cell_contents, FunctionType))


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
