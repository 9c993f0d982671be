"""Keys and values of the tokens a GPT has read, so that one more token costs one token's work. Allocated once.

Rows of a batch end at the same slot: shorter prompts are padded on the left, and the padding is masked out.
Shapes: B rows, K key/value heads, G query heads for each of them, S slots, T new tokens, D features of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Cache:
    """keys and values [B, K, S, D] of every layer; `used` slots of S are filled."""

    def __init__(self, padding: Tensor, slots: int, layers: int) -> None:
        self.slots, self.used = slots, 0
        self.keys: list[Tensor] = [padding] * layers  # placeholders, until the first tokens bring type and shape
        self.values: list[Tensor] = [padding] * layers
        self.padding: Tensor | None = padding if bool(padding.any()) else None
        self.mask: Tensor | None = None

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Positions of the next `count` tokens, not counting padding: [B, count], or [count] if there is none."""
        slots = torch.arange(self.used, self.used + count, device=device)
        return slots if self.padding is None else (slots - self.padding[:, None]).clamp_(min=0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Appends k, v [B, K, T, D] and returns what q [B, K * G, T, D] reads from all slots: [B, K * G, T, D]."""
        if self.used == 0:
            return self._first(layer, q, k, v)
        assert q.shape[2] == 1, "after the prompt, tokens come one at a time"
        keys, values, end = self.keys[layer], self.values[layer], self.used + 1
        keys[:, :, self.used] = k[:, :, 0]
        values[:, :, self.used] = v[:, :, 0]
        # For a single query two batched matrix products beat the fused kernel on a CPU (by 1.3 at 140 slots); the G
        # query heads of one key head are the rows of one product.
        rows = q.reshape(keys.shape[0] * keys.shape[1], -1, q.shape[3])
        k_all, v_all = keys[:, :, :end].flatten(0, 1), values[:, :, :end].flatten(0, 1)
        mask = rows.new_zeros(()) if self.mask is None else self.mask[:, :, :end]
        scores = torch.baddbmm(mask, rows, k_all.mT, alpha=1 / math.sqrt(q.shape[3]))
        return torch.bmm(scores.softmax(-1), v_all).view(q.shape)

    def advance(self, count: int) -> None:
        """The `count` tokens that every layer has appended now count as read."""
        self.used += count

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders the rows of the batch."""
        if len(rows) == len(self.keys[0]):
            for part in self.keys + self.values:
                part[:, :, : self.used] = part[:, :, : self.used].index_select(0, rows)
        else:
            self.keys = [part.index_select(0, rows) for part in self.keys]
            self.values = [part.index_select(0, rows) for part in self.values]
        if self.padding is not None:
            self.padding = self.padding.index_select(0, rows)
            self.mask = self._step_mask(self.keys[0])

    def _first(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The prompts: ordinary causal attention, beside filling the cache."""
        batch, heads, count, size = k.shape
        self.keys[layer] = k.new_empty(batch, heads, self.slots, size)
        self.values[layer] = v.new_empty(batch, heads, self.slots, size)
        self.keys[layer][:, :, :count] = k
        self.values[layer][:, :, :count] = v
        grouped = q.shape[1] != heads
        if self.padding is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        if self.mask is None:
            self.mask = self._step_mask(k)
        slots = torch.arange(count, device=q.device)
        real = (slots >= self.padding[:, None])[:, None, None, :]
        # a padding slot reads itself: an empty row of attention would be NaN, and NaN survives any later mask
        mask = (real & (slots <= slots[:, None])) | torch.eye(count, dtype=torch.bool, device=q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)

    def _step_mask(self, k: Tensor) -> Tensor:
        """[B * K, 1, S]: minus infinity on the padding."""
        assert self.padding is not None
        hidden = torch.arange(self.slots, device=k.device) < self.padding[:, None]
        mask = k.new_zeros(hidden.shape).masked_fill_(hidden, -math.inf)
        return mask.repeat_interleave(k.shape[1], dim=0)[:, None]
