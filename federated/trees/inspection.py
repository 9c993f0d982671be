"""What is wrong with a model of trees that a client sent, before anything reads it as one."""

import json
import math
from typing import Any

from federated.trees.booster import loads


def fault(content: bytes, blank: bytes, trees: int, parallel: int) -> str | None:
    """In a few words, or None: it must be as the model `blank` without trees, but for so many, all of them sound.

    A tree is sound if all of its nodes are reached from the root, each once, and its numbers are finite and in range.
    parallel: the number that Flower reads as the count of the trees to take.
    """
    try:
        learner, own = json.loads(content)["learner"], json.loads(blank)["learner"]
        if any(learner[name] != own[name] for name in ("learner_model_param", "objective")):
            return "is not a model for these inputs and targets"
        model = learner["gradient_booster"]["model"]
        header = model["gbtree_model_param"]
        found = len(model["trees"]), int(header["num_trees"]), int(header["num_parallel_tree"])
        if found != (trees, trees, parallel):
            return f"holds {found[0]} trees and says {found[1:]}, expected {trees} and {(trees, parallel)}"
        features = int(own["learner_model_param"]["num_feature"])
        for number, tree in enumerate(model["trees"]):
            if not _is_sound(tree, features):
                return f"holds a broken tree, number {number}"
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return "is not a model of trees in JSON"
    return None if loads(content) else "is not a model that the library reads"


def _is_sound(tree: Any, features: int) -> bool:
    left, right, conditions = tree["left_children"], tree["right_children"], tree["split_conditions"]
    if not len(left) == len(right) == len(conditions) == len(tree["split_indices"]) > 0 or any(tree["split_type"]):
        return False
    if not all(math.isfinite(value) for value in conditions):
        return False
    if not all(0 <= index < features for index in tree["split_indices"]):
        return False
    reached, waiting = set[int](), [0]
    while waiting:
        node = waiting.pop()
        if node in reached or not 0 <= node < len(left):
            return False
        reached.add(node)
        if left[node] != -1:
            waiting += [left[node], right[node]]
    return len(reached) == len(left)
