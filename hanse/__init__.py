"""Train models where the data and the machines are.

    import hanse
    result = hanse.train("configs/train/digits.yaml", {"train.steps": 50})
    print(result.metrics["accuracy"], result.run)

Importing this imports nothing else: torch comes with the first call.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanse.api import Trained, evaluate, generate, predict, simulate, train

__all__ = ["Trained", "evaluate", "generate", "predict", "simulate", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hanse")
    if name in __all__:
        from hanse import api

        return getattr(api, name)
    raise AttributeError(f"module 'hanse' has no attribute '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
