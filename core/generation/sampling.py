"""How the next token is chosen from a language model's logits. B rows, V vocabulary, N candidates."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """The strategy. As it stands: plain sampling from the model's distribution.

    greedy: the most probable token. temperature divides the logits. top_k keeps the k most probable tokens, 0 = all.
    top_p keeps the fewest tokens that hold that much probability (arXiv:1904.09751), after top_k. repetition_penalty,
    above 1, makes tokens of the prompt or of the text so far less probable (CTRL, arXiv:1909.05858). beams above 1
    searches for the most probable continuation, scored by its log-probability / length ** length_penalty.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "repetition_penalty"):
            if not 0 < getattr(self, name) < float("inf"):
                hint = "; for the most probable token set greedy" if name == "temperature" else ""
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}{hint}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.beams < 1:
            raise ValueError(f"beams must be at least 1, got {self.beams}")
        if not abs(self.length_penalty) < float("inf"):
            raise ValueError(f"length_penalty must be a number, got {self.length_penalty}")
        is_plain = self.temperature == self.top_p == self.repetition_penalty == 1 and self.top_k == 0
        if self.beams > 1 and not (is_plain and not self.greedy):
            raise ValueError(
                "beams search without chance; leave greedy and the sampling settings as they are, or set beams: 1"
            )

    def draw(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B] and their log-probability [B] under the distribution they are drawn from.

        logits [B, V] (penalized already); uniform [B] in [0, 1) decides: row b takes the token where the cumulative
        probability passes uniform[b]. For greedy the distribution is that of the logits.
        """
        logits = logits.float()
        if self.greedy:
            logprobs = logits.log_softmax(-1)
            chosen = logprobs.max(-1)
            return chosen.indices, chosen.values
        if self.temperature != 1:
            logits = logits / self.temperature
        tokens = None
        if 0 < self.top_k < logits.shape[-1]:
            logits, tokens = logits.topk(self.top_k, dim=-1)
        elif self.top_p < 1:
            logits, tokens = logits.sort(dim=-1, descending=True)
        logprobs = logits.log_softmax(-1)
        if self.top_p < 1:
            before = logprobs.exp().cumsum(-1).roll(1, -1)
            before[:, 0] = 0
            logprobs = logprobs.masked_fill(before >= self.top_p, -torch.inf).log_softmax(-1)
        # in float64 uniform * total stays below total, so that a token of probability 0 is never chosen
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
        index = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
        chosen_tokens = index if tokens is None else tokens.gather(1, index)
        return chosen_tokens[:, 0], logprobs.gather(1, index)[:, 0]


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits [B, V] with those of `seen` tokens [B, V] (bool) made smaller: divided if positive, else multiplied."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
