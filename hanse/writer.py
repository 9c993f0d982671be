"""Text from a trained language model, or from several together: written in pieces, as soon as they can be read."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data import Tokenizer
from core.ensemble.panel import require_alike
from core.errors import ConfigError, DataError
from core.generation.generate import Sampling, generate, stream
from core.generation.mixture import Mixture
from core.randomness import seed_of
from core.storage import artifact
from core.storage.artifact import Model

DEFAULT_LENGTH = 200  # new tokens, where the model's context has room for them
PROMPTS = ("The ", "In ", "\n")  # of the samples that a run shows
DRAWING = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")  # what a beam search has no use for
BROKEN = "\ufffd"  # what an unfinished UTF-8 character is decoded to


@dataclass(frozen=True)
class Writing:
    """What to write. `temperature` 0 takes the most probable token; `max_new_tokens` null is what fits, up to 200.

    `beams` above 1 searches for the most probable text. The text ends before any of `stop`.
    """

    prompt: str
    max_new_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    beams: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or above, got {self.temperature}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if "" in self.stop:
            raise ValueError("stop must not be empty text")
        self.sampling  # noqa: B018 - its own checks

    @property
    def sampling(self) -> Sampling:
        """How each token is chosen. A beam search draws nothing: the settings of a draw are refused beside it."""
        if self.beams > 1:
            given = [name for name in DRAWING if getattr(self, name) != getattr(type(self), name)]
            if given:
                raise ValueError(f"beams above 1 searches without chance; leave {', '.join(given)} out, or set beams=1")
            return Sampling(beams=self.beams)
        greedy = self.temperature == 0
        return Sampling(
            greedy=greedy,
            temperature=1.0 if greedy else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
        )


def write(models: Sequence[Model], writing: Writing) -> Iterator[str]:
    """What follows the prompt, piece by piece; several models write it together, token by token.

    ConfigError if they write no text, or too much is asked; DataError if their tokenizers differ.
    """
    first = models[0]
    if first.spec.target != "token":
        raise ConfigError(f"{first.directory}: a model of {first.spec.kind} data writes no text; use `hanse predict`")
    tokenizer = first.preprocess.tokenizer
    return cut(decoded(_tokens(_network(models), tokenizer, writing), tokenizer), writing.stop)


def continuations(directory: Path) -> list[dict[str, str]]:
    """A few short samples of a model or ensemble, for its report; prompts are cut so that any context has room.

    None of an ensemble whose members, trained on folds, have tokenizers of their own and so cannot write together.
    """
    models = artifact.load_all(directory)
    try:
        require_alike(models)
    except DataError:
        return []
    writings = [Writing(_fitting(prompt, models), seed=seed_of("sample", i)) for i, prompt in enumerate(PROMPTS)]
    return [{"prompt": writing.prompt, "text": "".join(write(models, writing))} for writing in writings]


def _network(models: Sequence[Model]) -> Any:
    """The `LanguageModel` that the models are together."""
    require_alike(models)
    return models[0].task.network if len(models) == 1 else Mixture([model.task.network for model in models])


def _fitting(prompt: str, models: Sequence[Model]) -> str:
    """The beginning of a prompt that leaves room for a new token; a single token always does, for it need not stay."""
    context = _network(models).context
    tokenizer = models[0].preprocess.tokenizer
    while context is not None and len(tokenizer.encode(prompt)) > max(1, context - 1):
        prompt = prompt[:-1]
    return prompt


def _tokens(network: Any, tokenizer: Tokenizer, writing: Writing) -> Iterator[int]:
    prompt = tokenizer.encode(writing.prompt) or [tokenizer.end]  # nothing before it: a document begins
    context = network.context
    room = DEFAULT_LENGTH if context is None else min(DEFAULT_LENGTH, max(1, context - len(prompt)))
    length = writing.max_new_tokens or room
    if writing.beams > 1:
        best = generate(network, [prompt], max_new_tokens=length, sampling=writing.sampling, stop=[tokenizer.end])
        return iter(best.tokens[0])
    sampled = stream(
        network, [prompt], max_new_tokens=length, sampling=writing.sampling, stop=[tokenizer.end], seed=writing.seed
    )
    return (token for tokens in sampled for token in tokens if token is not None)


def decoded(tokens: Iterable[int], tokenizer: Any) -> Iterator[str]:
    """Text of tokens as they come; the bytes of one character stay together."""
    waiting: list[int] = []
    for token in tokens:
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if text.endswith(BROKEN) and len(waiting) < 4:  # UTF-8 takes at most 4 bytes: more are broken for good
            continue
        waiting = []
        yield text
    if waiting:
        yield tokenizer.decode(waiting)


def cut(pieces: Iterable[str], stop: tuple[str, ...]) -> Iterator[str]:
    """The same text up to the first of `stop`; what could be the beginning of one is held back until that is known."""
    held = ""
    for piece in pieces:
        held += piece
        ends = [held.index(word) for word in stop if word in held]
        if ends:
            yield held[: min(ends)]
            return
        keep = max((n for word in stop for n in range(1, len(word)) if held.endswith(word[:n])), default=0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held
