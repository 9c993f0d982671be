"""Beam search: the most probable continuations, K beams at a time. B prompts, V vocabulary, at most N new tokens."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.generation.sampling import Sampling


@dataclass
class Best:
    """The best finished continuation of each prompt so far. tokens and logprobs [B, N]; length, score, stopped [B]."""

    tokens: Tensor
    logprobs: Tensor
    length: Tensor
    score: Tensor
    stopped: Tensor

    @classmethod
    def none(cls, batch: int, count: int, device: torch.device) -> "Best":
        """Nothing found yet, which anything beats."""
        integers, numbers = torch.zeros(batch, count, dtype=torch.long), torch.zeros(batch, count)
        length, score = torch.zeros(batch, dtype=torch.long), torch.full((batch,), -math.inf)
        return cls(*(t.to(device) for t in (integers, numbers, length, score, length > 0)))

    def update(self, tokens: Tensor, logprobs: Tensor, scores: Tensor, stops: Tensor) -> None:
        """Takes in candidates [B, C, n] with scores [B, C] (minus infinity: not finished)."""
        score, pick = scores.max(dim=1)
        better = score > self.score
        count = tokens.shape[2]
        where = better[:, None]
        row = pick[:, None, None].expand(-1, 1, count)
        self.tokens[:, :count] = torch.where(where, tokens.gather(1, row)[:, 0], self.tokens[:, :count])
        self.logprobs[:, :count] = torch.where(where, logprobs.gather(1, row)[:, 0], self.logprobs[:, :count])
        self.length = torch.where(better, count, self.length)
        self.stopped = torch.where(better, stops.gather(1, pick[:, None])[:, 0], self.stopped)
        self.score = torch.where(better, score, self.score)


def beam_search(model: Any, logits: Tensor, state: Any, sampling: Sampling, stop: Tensor, count: int) -> Best:
    """The best continuation of up to `count` tokens of each prompt, from what `model.start` gave: logits [B, V], state.

    At each step the K most probable of all extensions go on; those among them that end in a `stop` token are finished.
    A prompt is done when none of its beams can still beat its best finished continuation.
    """
    (batch, vocabulary), device = logits.shape, logits.device
    beams, length_penalty = sampling.beams, sampling.length_penalty
    prompts = torch.arange(batch, device=device)
    state.select(prompts.repeat_interleave(beams))
    logits = logits.repeat_interleave(beams, dim=0)
    total = torch.full((batch, beams), -math.inf, device=device)
    total[:, 0] = 0  # at first all beams are the prompt: only one may be extended
    tokens = torch.zeros(batch, beams, 0, dtype=torch.long, device=device)
    logprobs = torch.zeros(batch, beams, 0, device=device)
    best = Best.none(batch, count, device)
    width = min(beams * (1 + max(1, len(stop))), beams * vocabulary)  # enough to go on even if K candidates stop
    for length in range(1, count + 1):
        step = logits.float().log_softmax(-1).view(batch, beams, vocabulary)
        candidates, index = (total[..., None] + step).flatten(1).topk(width, dim=1)
        parent, token = index // vocabulary, index % vocabulary
        tokens = torch.cat([_rows(tokens, parent), token[..., None]], dim=2)
        logprobs = torch.cat([_rows(logprobs, parent), step.flatten(1).gather(1, index)[..., None]], dim=2)
        stops = torch.isin(token, stop)
        ends = stops | (length == count)
        ends[:, beams:] = False
        scores = torch.where(ends, candidates / length**length_penalty, -math.inf)
        best.update(tokens, logprobs, scores, stops)
        if length == count:
            break
        total, kept = candidates.masked_fill(stops, -math.inf).topk(beams, dim=1)
        # log-probabilities only fall, so the longest (the shortest, if length is punished) text is the best hope
        hope = total[:, 0] / (count if length_penalty > 0 else length) ** length_penalty
        if bool((hope <= best.score).all()):
            break
        tokens, logprobs = _rows(tokens, kept), _rows(logprobs, kept)
        state.select((prompts[:, None] * beams + parent.gather(1, kept)).flatten())
        logits = model.step(tokens[:, :, -1].flatten(), state)
    return best


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """The beams `rows` [B, R] of x [B, K, n]."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))
