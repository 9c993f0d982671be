"""Range checks of the model configs and of how a model goes with the data.

A bad field is a ValueError whose text starts with the field's name, so that a config parser can put the dotted path
before it.
"""

from typing import get_args

from core.data.spec import Spec
from core.errors import ConfigError

MOST_LAYERS = 1000  # the deepest networks that were published have about so many


def at_least(name: str, value: float, low: float) -> None:
    """Refuses values below `low`, and NaN."""
    if not value >= low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def count(name: str, value: int, high: int = MOST_LAYERS) -> None:
    """Refuses values outside [1, high]: each layer is a module, and its tensors."""
    if not 1 <= value <= high:
        raise ValueError(f"{name} must be between 1 and {high}, got {value}")


def positive(name: str, value: float) -> None:
    """Refuses values that are not above 0."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def fraction(name: str, value: float) -> None:
    """Refuses values outside [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def sizes(name: str, values: tuple[int, ...]) -> None:
    """Refuses a list with an entry below 1, and one of more layers than a network has."""
    if any(value < 1 for value in values):
        raise ValueError(f"{name} must hold numbers of at least 1, got {list(values)}")
    if len(values) > MOST_LAYERS:
        raise ValueError(f"{name} must hold at most {MOST_LAYERS} numbers, got {len(values)}")


def one_of(name: str, value: str, choices: object) -> None:
    """Refuses values that are not in the Literal type `choices`."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value}")


def fits(spec: Spec, model: str, *pairs: tuple[str, str]) -> None:
    """Raises ConfigError unless (kind, target) of the data is one of `pairs`."""
    if (spec.kind, spec.target) not in pairs:
        taken = ", ".join(f"{kind} data with {target} targets" for kind, target in pairs)
        raise ConfigError(
            f"model.kind: {model} does not go with {spec.kind} data and {spec.target} targets; it takes {taken}"
        )
