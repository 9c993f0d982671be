"""What a client judged, as Flower's records, and back: metric states, which add, and its own numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from federated.flower.messages import ARRAYS, METRICS, WEIGHT, Malformed, read_tensors, weights_record
from federated.site import Judged, Verdict

NUMBERS = {"shared": "", "personal": "personal."}  # what stands before the names of a model's numbers
Shape = tuple[int, ...]


def judged_record(judged: Judged) -> RecordDict:
    """Of one client: states under MODEL.NAME, and its numbers, which Flower's own strategies average by their WEIGHT.

    The numbers of the shared model stand under their plain names, those of its own model under personal.NAME.
    """
    states = {f"{model}.{name}": t for model, state in judged.states.items() for name, t in state.items()}
    numbers: dict[str, int | float] = {}
    for verdict in judged.verdicts:
        before = NUMBERS[verdict.model]
        numbers |= {before + name: value for name, value in verdict.metrics.items()}
        numbers[before + WEIGHT] = verdict.examples
    return RecordDict({ARRAYS: weights_record(states), METRICS: MetricRecord(dict(numbers))})


def read_judged(message: Message, client: int, shapes: Mapping[str, Shape]) -> Judged | None:
    """None for a message that is not what `judged_record` makes, or holds numbers that are not finite."""
    if message.has_error() or not message.has_content():
        return None
    arrays, numbers = message.content.get(ARRAYS), message.content.get(METRICS)
    if not isinstance(arrays, ArrayRecord) or not isinstance(numbers, MetricRecord):
        return None
    judged = Judged()
    models = {model: before for model, before in NUMBERS.items() if before + WEIGHT in numbers}
    wanted = {f"{model}.{name}": (shape, torch.float64) for model in models for name, shape in shapes.items()}
    try:
        states = read_tensors(arrays, wanted)
    except Malformed:
        return None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in states.values()):
        return None
    for model, before in models.items():
        judged.states[model] = {name: states[f"{model}.{name}"] for name in shapes}
        plain = {name.removeprefix(before): v for name, v in numbers.items() if name.startswith(before)}
        own: dict[str, Any] = {name: v for name, v in plain.items() if "." not in name}
        examples = own.pop(WEIGHT)
        metrics = {name: float(value) for name, value in own.items() if isinstance(value, int | float)}
        if not isinstance(examples, int) or examples < 0:
            return None
        judged.verdicts.append(Verdict(client, model, examples, metrics))
    return judged
