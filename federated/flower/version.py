"""Which Flower this project is made for: some of what it uses there is not public."""

import flwr

from core.errors import ResourceError

FLOWER = "1.41."  # `TaskIdentity` and the parts of a SuperLink may lie elsewhere in other versions


def require() -> None:
    """Raises ResourceError for another version."""
    if not flwr.__version__.startswith(FLOWER):
        raise ResourceError(f"flwr: {FLOWER}x is needed and {flwr.__version__} is here; pip install 'flwr=={FLOWER}*'")
