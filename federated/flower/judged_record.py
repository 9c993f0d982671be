"""What a client judged, as Flower's records, and back: metric states, which add, and its own numbers."""

import math
from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from core.metrics import Metrics, State
from federated.flower.messages import ARRAYS, METRICS, WEIGHT, Malformed, read_tensors, weights_record
from federated.site import Judged, Verdict

NUMBERS = {"shared": "", "personal": "personal."}  # what stands before the names of a model's numbers


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


def read_judged(message: Message, client: int, metrics: Metrics) -> Judged | None:
    """None for a message that is not what `judged_record` makes, or holds numbers that are not finite.

    A client's metrics follow from its states: what it says of them is not read.
    """
    if message.has_error() or not message.has_content():
        return None
    arrays, numbers = message.content.get(ARRAYS), message.content.get(METRICS)
    if not isinstance(arrays, ArrayRecord) or not isinstance(numbers, MetricRecord):
        return None
    judged, shapes = Judged(), metrics.shapes()
    models = {model: before for model, before in NUMBERS.items() if before + WEIGHT in numbers}
    wanted = {f"{model}.{name}": (shape, torch.float64) for model in models for name, shape in shapes.items()}
    try:
        states = read_tensors(arrays, wanted)
    except Malformed:
        return None
    for model, before in models.items():
        state, examples = {name: states[f"{model}.{name}"] for name in shapes}, numbers[before + WEIGHT]
        found = metrics.compute(state)
        if not isinstance(examples, int) or examples < 0 or not _are_finite(state, found):
            return None
        judged.merge(Judged({model: state}, [Verdict(client, model, examples, found)]))
    return judged


def _are_finite(state: State, found: Mapping[str, float]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in state.values()) and all(map(math.isfinite, found.values()))
