"""Example-level privacy: gradients in which no example counts for more than a bound, and noise that hides each one.

What is here is the mechanism. A privacy budget is not computed: that takes Poisson sampling and an accountant.
"""

from core.privacy.config import ExamplePrivacy

__all__ = ["ExamplePrivacy"]
