"""What a client judged, as Flower's records, and back: metric states, which add, and its own numbers."""

import math
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from core.metrics import Metrics, State
from federated.federation import Federation
from federated.flower.messages import ARRAYS, METRICS, WEIGHT, Fault, Malformed, read_tensors, weights_record
from federated.inspection import LARGEST_WEIGHT, ROUNDING, short
from federated.judging import metrics_for
from federated.site import Judged, Verdict

UNCLEAR = "no good answer to the evaluation"
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


@dataclass(frozen=True)
class Judgeable:
    """What an evaluation's replies must be.

    held_out: examples that each client judges. models: those that clients may judge. most: what an example may add to
    the weight; None where examples have weights of their own. max_weight: what all of a client's examples may.
    """

    metrics: Metrics
    held_out: Tensor
    models: tuple[str, ...] = tuple(NUMBERS)
    most: float | None = None
    max_weight: float | None = None

    @classmethod
    def of(cls, federation: Federation) -> "Judgeable":
        """Of a federation's clients."""
        run, spec = federation.run, federation.clients.spec
        most = float(math.prod(spec.shape)) if spec.target == "token" else 1.0
        is_weighted = getattr(run.recipe.data, "weight", None) is not None
        has_own = run.strategy.judges_own or run.evaluate.fine_tune_epochs > 0
        return cls(
            metrics_for(federation),
            federation.clients.held_out_sizes,
            tuple(NUMBERS) if has_own else ("shared",),
            None if is_weighted else most,
            run.max_weight,
        )


def read_judged(message: Message, client: int, wanted: Judgeable) -> Judged | Fault:
    """What a client judged, or why that does not count: a message that is not what `judged_record` makes, sums that no
    examples give, or a weight that the client cannot have. Never raises, whatever the message holds.

    A client's metrics follow from its states: what it says of them is not read.
    """
    if message.has_error() or not message.has_content():
        return Fault(UNCLEAR, client)
    arrays, numbers = message.content.get(ARRAYS), message.content.get(METRICS)
    if not isinstance(arrays, ArrayRecord) or not isinstance(numbers, MetricRecord):
        return Fault(UNCLEAR, client)
    metrics = wanted.metrics
    judged, shapes = Judged(), metrics.shapes()
    models = {model: NUMBERS[model] for model in wanted.models if NUMBERS[model] + WEIGHT in numbers}
    forms = {f"{model}.{name}": (shape, torch.float64) for model in models for name, shape in shapes.items()}
    try:
        states = read_tensors(arrays, forms)
    except Malformed as error:
        return Fault(f"evaluation: {error}", client)
    if not models and int(wanted.held_out[client]):
        return Judged(withheld=[client])
    for model, before in models.items():
        state, examples = {name: states[f"{model}.{name}"] for name in shapes}, numbers[before + WEIGHT]
        text = _examples_fault(examples, client, wanted) or metrics.fault(state) or _weight_fault(state, wanted, client)
        if text:
            return Fault(f"evaluation: {text}", client)
        judged.merge(
            Judged({model: state}, [Verdict(client, model, int(wanted.held_out[client]), metrics.compute(state))])
        )
    return judged


def _examples_fault(examples: object, client: int, wanted: Judgeable) -> str | None:
    held_out = int(wanted.held_out[client])
    if isinstance(examples, bool) or not isinstance(examples, int) or examples != held_out:
        return f"says that it judged {short(examples)} examples, and holds out {held_out}"
    return None


def _weight_fault(state: State, wanted: Judgeable, client: int) -> str | None:
    weight, largest = float(state["weight"]), LARGEST_WEIGHT if wanted.max_weight is None else wanted.max_weight
    if wanted.most is not None:
        largest = min(largest * wanted.most, int(wanted.held_out[client]) * wanted.most)
    return f"weight {weight:g} is above {largest:g}" if weight > largest * (1 + ROUNDING) else None
