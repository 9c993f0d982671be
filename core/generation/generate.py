"""Text generation from any causal language model of the zoo: `generate` for whole texts, `stream` token by token.

A prompt's result does not depend on the other prompts of its batch: shorter prompts are padded on the left and masked,
and the noise of a token is a function of (seed, the prompt's id, the token's index). B prompts, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from core.errors import ConfigError
from core.generation.beam import beam_search
from core.generation.sampling import Sampling, penalize
from core.randomness import Key, seed_of, uniform

__all__ = ["Generation", "LanguageModel", "Sampling", "generate", "stream"]

PLAIN = Sampling()


class LanguageModel(Protocol):
    """What a network must offer. Its state has `select(rows)`: keep, repeat or reorder the rows of the batch."""

    context: int | None  # how many tokens it can read, None = any number
    vocabulary: int

    def start(self, tokens: Tensor, padding: Tensor, slots: int) -> tuple[Tensor, Any]:
        """Reads prompts [B, T], left-padded by `padding` [B] -> logits [B, V], a state with room for `slots` tokens."""

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        """Reads one more token [B] for each row, and changes the state -> logits [B, V]."""


@dataclass(frozen=True)
class Generation:
    """For each prompt: its new tokens (a stop token included) and the log-probability of each under the distribution it
    was drawn from; their sum (for beams divided by length ** length_penalty); whether a stop token ended it."""

    tokens: list[list[int]]
    logprobs: list[list[float]]
    scores: list[float]
    finished: list[bool]


@torch.inference_mode()
def generate(
    network: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = PLAIN,
    stop: Sequence[int] = (),
    seed: int = 0,
    ids: Sequence[Key] | None = None,
) -> Generation:
    """Continues every prompt by up to `max_new_tokens` tokens, or until one of `stop`.

    network: a `LanguageModel`. ids: an address for each prompt's noise, by default its place in `prompts`. Raises
    ConfigError for prompts that are empty, hold unknown tokens, or leave too little of the model's context.
    """
    if not prompts:
        return Generation([], [], [], [])
    order = _order(network, prompts, max_new_tokens, stop)
    if sampling.beams > 1:
        logits, state = network.start(order.tokens, order.padding, order.slots)
        best = beam_search(network, logits, state, sampling, order.stop, order.count)
        return _pack(best.tokens, best.logprobs, best.length, best.score, best.stopped)
    steps = list(_steps(network, order, sampling, _keys(seed, ids, len(prompts), order.tokens.device)))
    tokens, logprobs, done = (torch.stack(parts, dim=1) for parts in zip(*steps, strict=True))
    length = (~done).sum(1) + done.any(1)
    written = torch.arange(tokens.shape[1], device=tokens.device) < length[:, None]
    return _pack(tokens, logprobs, length, torch.where(written, logprobs, 0).sum(1), done.any(1))


def stream(
    network: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = PLAIN,
    stop: Sequence[int] = (),
    seed: int = 0,
    ids: Sequence[Key] | None = None,
) -> Iterator[list[int | None]]:
    """The tokens of `generate`, one per prompt at a time, as soon as they are known; None for a prompt that has ended.

    Raises ConfigError as `generate` does, at once, and for beams, whose tokens are known only at the end.
    """
    if sampling.beams > 1:
        raise ConfigError(
            "beams: a beam search knows its text only at the end; set beams=1 to stream, or do not stream"
        )
    if not prompts:
        return iter(())
    order = _order(network, prompts, max_new_tokens, stop)
    return _stream(_steps(network, order, sampling, _keys(seed, ids, len(prompts), order.tokens.device)))


def _stream(steps: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Iterator[list[int | None]]:
    ended: list[bool] | None = None
    for tokens, _, done in steps:
        new: list[int | None] = tokens.tolist()
        yield [None if over else token for token, over in zip(new, ended, strict=True)] if ended else new
        ended = done.tolist()
        if all(ended):
            return


@dataclass(frozen=True)
class _Order:
    """What is to be written: tokens [B, T] left-padded by padding [B], count new tokens, stop [S]."""

    tokens: Tensor
    padding: Tensor
    count: int
    stop: Tensor

    @property
    def slots(self) -> int:
        return self.tokens.shape[1] + self.count - 1  # the last new token is never read


@torch.inference_mode()
def _steps(network: Any, order: _Order, sampling: Sampling, keys: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """New tokens [B], their log-probabilities [B] and whether each row has met a stop token [B], step by step."""
    logits, state = network.start(order.tokens, order.padding, order.slots)
    noise = uniform(keys, 0, order.count).T.contiguous()
    done = torch.zeros_like(order.padding, dtype=torch.bool)
    seen = _seen(order, network.vocabulary) if sampling.repetition_penalty != 1 else None
    every = 1 if logits.device.type == "cpu" else 16  # looking at `done` makes the host wait for an accelerator
    for index in range(order.count):
        if seen is not None:
            logits = penalize(logits, seen, sampling.repetition_penalty)
        token, logprob = sampling.draw(logits, noise[index])
        if len(order.stop):
            done = done | torch.isin(token, order.stop)
        yield token, logprob, done
        if index + 1 == order.count or (len(order.stop) and index % every == 0 and bool(done.all())):
            return
        if seen is not None:
            seen.scatter_(1, token[:, None], True)
        logits = network.step(token, state)


def _seen(order: _Order, vocabulary: int) -> Tensor:
    """Which tokens each prompt holds: [B, V] bool."""
    is_real = torch.arange(order.tokens.shape[1], device=order.tokens.device) >= order.padding[:, None]
    seen = torch.zeros(len(order.tokens), vocabulary + 1, dtype=torch.bool, device=order.tokens.device)
    return seen.scatter_(1, torch.where(is_real, order.tokens, vocabulary), True)[:, :vocabulary]


def _order(network: Any, prompts: Sequence[Sequence[int]], count: int, stop: Sequence[int]) -> _Order:
    if count < 1:
        raise ConfigError(f"max_new_tokens must be at least 1, got {count}")
    for token in stop:
        if not 0 <= token < network.vocabulary:
            raise ConfigError(f"stop: token {token} is not in the model's vocabulary of {network.vocabulary}")
    for number, prompt in enumerate(prompts):
        _check(network, number, prompt, count)
    device = next(network.parameters()).device
    width = max(len(prompt) for prompt in prompts)
    rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    padding = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
    return _Order(
        torch.tensor(rows, device=device), padding, count, torch.tensor(stop, dtype=torch.long, device=device)
    )


def _check(network: Any, number: int, prompt: Sequence[int], count: int) -> None:
    vocabulary, context, size = network.vocabulary, network.context, len(prompt)
    if not size:
        raise ConfigError(f"prompt {number} is empty; give at least one token, such as the text's start token")
    if min(prompt) < 0 or max(prompt) >= vocabulary:
        bad = next(token for token in prompt if not 0 <= token < vocabulary)
        raise ConfigError(
            f"prompt {number}: token {bad} is not in the vocabulary of {vocabulary}; use the model's own tokenizer"
        )
    if context is not None and size + count - 1 > context:
        fix = f"set max_new_tokens to {context + 1 - size} or less" if size <= context else "shorten the prompt"
        raise ConfigError(
            f"prompt {number}: {size} tokens and max_new_tokens={count} do not fit into the model's context "
            f"of {context}; {fix}"
        )


def _keys(seed: int, ids: Sequence[Key] | None, count: int, device: torch.device) -> Tensor:
    """The noise address of each prompt: [B] int64."""
    names: Sequence[Key] = range(count) if ids is None else ids
    if len(names) != count:
        raise ConfigError(f"ids: {len(names)} for {count} prompts; give one each")
    return torch.tensor([seed_of(seed, "generate", name) for name in names], device=device)


def _pack(tokens: Tensor, logprobs: Tensor, length: Tensor, score: Tensor, finished: Tensor) -> Generation:
    lengths = length.tolist()
    return Generation(
        [row[:n] for row, n in zip(tokens.tolist(), lengths, strict=True)],
        [row[:n] for row, n in zip(logprobs.tolist(), lengths, strict=True)],
        score.tolist(),
        finished.tolist(),
    )
