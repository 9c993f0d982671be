"""What a model learns: pure functions from outputs and a batch to one loss and one weight per example.

The union `ObjectiveConfig` is the registry: a new objective is a file with a dataclass, and one name here.
"""

from core.objectives.language import Language
from core.objectives.supervised import Classification, Regression

ObjectiveConfig = Classification | Regression | Language

__all__ = ["Classification", "Language", "ObjectiveConfig", "Regression"]
