"""GPT: a decoder-only transformer that is Llama-shaped by default and GPT-2-shaped by choice.

Shapes: B examples, T tokens, W width, H query heads, K key/value heads, D = W / H, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.data.spec import Spec
from core.errors import ConfigError
from core.models import checks
from core.models.gpt_cache import Cache
from core.models.layers import ACTIVATIONS, Dropout, Norm1d, norm_1d, rotary_table, rotate, sinusoids

Positions = Literal["rope", "learned", "sinusoidal"]
MLPActivation = Literal["gelu", "gelu_tanh", "swiglu"]
Rotary = tuple[Tensor, Tensor] | None

INIT_STD = 0.02  # GPT-2's


@dataclass(frozen=True)
class GPT:
    """kv_heads: grouped-query attention (arXiv:2305.13245), null = heads. hidden: of the MLP; null = 4 * width, or for
    swiglu (arXiv:2002.05202) 8/3 * width rounded up to 32. tie: the head is the embedding. The context is the data's.

    Dropout acts on the embeddings and on what each branch adds, not inside attention, whose fused kernels draw noise of
    their own.
    """

    kind: Literal["gpt"] = "gpt"
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int | None = None
    hidden: int | None = None
    positions: Positions = "rope"
    norm: Norm1d = "rmsnorm"
    activation: MLPActivation = "swiglu"
    tie: bool = True
    bias: bool = False
    dropout: float = 0.0
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("width", "heads"):
            checks.at_least(name, getattr(self, name), 1)
        checks.count("layers", self.layers)
        for name, value in (("kv_heads", self.kv_heads), ("hidden", self.hidden)):
            if value is not None:
                checks.at_least(name, value, 1)
        if self.width % self.heads:
            raise ValueError(f"heads must divide width ({self.width}), got {self.heads}")
        if self.heads % self.key_heads:
            raise ValueError(f"kv_heads must divide heads ({self.heads}), got {self.kv_heads}")
        checks.one_of("positions", self.positions, Positions)
        checks.one_of("norm", self.norm, Norm1d)
        checks.one_of("activation", self.activation, MLPActivation)
        if self.positions == "rope" and (self.width // self.heads) % 2:
            raise ValueError(f"heads must leave an even width / heads for rope, got {self.width} / {self.heads}")
        checks.fraction("dropout", self.dropout)
        checks.positive("rope_theta", self.rope_theta)
        checks.positive("norm_eps", self.norm_eps)

    @property
    def key_heads(self) -> int:
        """The number of key/value heads, spelled out."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def inner(self) -> int:
        """The width inside the MLP, spelled out."""
        if self.hidden is not None:
            return self.hidden
        return -(-8 * self.width // 96) * 32 if self.activation == "swiglu" else 4 * self.width

    def build(self, spec: Spec) -> "GPTNetwork":
        """A fresh network with a context of spec.shape[0] tokens. Raises ConfigError if the data is not text."""
        checks.fits(spec, "gpt", ("text", "token"))
        return GPTNetwork(self, spec)


class Attention(nn.Module):
    """Causal self-attention. One matrix makes queries, keys and values, in this order."""

    def __init__(self, config: GPT) -> None:
        super().__init__()
        self.heads, self.key_heads, self.size = config.heads, config.key_heads, config.width // config.heads
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.key_heads) * self.size, bias=config.bias)
        self.output = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor, rotary: Rotary, layer: int, cache: Cache | None) -> Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, -1, self.size)
        qk, v = qkv.split((self.heads + self.key_heads, self.key_heads), dim=2)
        qk = qk if rotary is None else rotate(qk, rotary)
        q, k = qk.transpose(1, 2).split((self.heads, self.key_heads), dim=1)
        v = v.transpose(1, 2)
        if cache is not None:
            y = cache.attend(layer, q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.key_heads)
        out: Tensor = self.output(y.transpose(1, 2).reshape(batch, count, width))
        return out


class FeedForward(nn.Module):
    """[B, T, W] -> [B, T, W]. swiglu has a gate beside the input."""

    def __init__(self, config: GPT) -> None:
        super().__init__()
        self.activation = F.silu if config.activation == "swiglu" else ACTIVATIONS[config.activation]
        self.gate = nn.Linear(config.width, config.inner, bias=config.bias) if config.activation == "swiglu" else None
        self.input = nn.Linear(config.width, config.inner, bias=config.bias)
        self.output = nn.Linear(config.inner, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.input(x)
        y = self.activation(y) if self.gate is None else self.activation(self.gate(x)) * y
        out: Tensor = self.output(y)
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP, each beside a shortcut."""

    def __init__(self, config: GPT) -> None:
        super().__init__()
        self.attention_norm = norm_1d(config.norm, config.width, config.norm_eps, config.bias)
        self.attention = Attention(config)
        self.attention_dropout = Dropout(config.dropout)
        self.mlp_norm = norm_1d(config.norm, config.width, config.norm_eps, config.bias)
        self.mlp = FeedForward(config)
        self.mlp_dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, key: Tensor | None, rotary: Rotary, layer: int, cache: Cache | None) -> Tensor:
        x = x + self.attention_dropout(self.attention(self.attention_norm(x), rotary, layer, cache), key)
        y: Tensor = x + self.mlp_dropout(self.mlp(self.mlp_norm(x)), key)
        return y


class GPTNetwork(nn.Module):
    """tokens [B, T] int64 -> logits [B, T, V] of each next token. `start` and `step` serve `core.generation`."""

    def __init__(self, config: GPT, spec: Spec) -> None:
        super().__init__()
        self.config, self.context, self.vocabulary = config, spec.shape[0], spec.outputs
        self.embedding = nn.Embedding(spec.outputs, config.width)
        self.positions = nn.Embedding(self.context, config.width) if config.positions == "learned" else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = norm_1d(config.norm, config.width, config.norm_eps, config.bias)
        self.head = None if config.tie else nn.Linear(config.width, spec.outputs, bias=False)
        self.apply(_initialize)
        for name, weight in self.named_parameters():
            if name.endswith("output.weight"):  # what the 2 * layers branches add up keeps its size (GPT-2)
                nn.init.normal_(weight, std=INIT_STD / math.sqrt(2 * config.layers))

    def forward(self, inputs: Tensor, key: Tensor | None = None) -> Tensor:
        return self.logits(self.features(inputs, key))

    def logits(self, x: Tensor) -> Tensor:
        """Features [..., W] -> logits [..., V]."""
        return F.linear(x, self.embedding.weight if self.head is None else self.head.weight)

    def features(self, inputs: Tensor, key: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Tokens [B, T] -> what the head reads [B, T, W]. With a cache the tokens follow those it holds."""
        count = inputs.shape[1]
        if count > self.context and self.config.positions == "learned":
            raise ConfigError(f"the model has learned {self.context} positions, got {count} tokens; shorten the input")
        if cache is None:
            positions = torch.arange(count, device=inputs.device)
        else:
            positions = cache.positions(count, inputs.device)
        x = self.embedding(inputs)
        rotary = None
        if self.config.positions == "rope":
            cos, sin = rotary_table(positions, self.config.width // self.config.heads, self.config.rope_theta)
            rotary = cos[..., None, :].to(x.dtype), sin[..., None, :].to(x.dtype)
        elif self.positions is not None:
            x = x + self.positions(positions)
        else:  # the code's entries have a root mean square of sqrt(1/2); brought to the embeddings' initial size
            x = x + sinusoids(positions, self.config.width).to(x.dtype) * (INIT_STD * math.sqrt(2))
        x = self.dropout(x, key)
        for layer, block in enumerate(self.blocks):
            x = block(x, key, rotary, layer, cache)
        if cache is not None:
            cache.advance(count)
            x = x[:, -1:]
        out: Tensor = self.norm(x)
        return out

    def start(self, tokens: Tensor, padding: Tensor, slots: int) -> tuple[Tensor, Cache]:
        """Reads left-padded prompts [B, T] with `padding` [B] on their left -> logits [B, V] of the next token, cache.

        `slots`: how many tokens the cache must hold, prompts with padding included.
        """
        cache = Cache(padding, slots, len(self.blocks))
        return self.logits(self.features(tokens, cache=cache)[:, 0]), cache

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """One more token [B] for each row -> logits [B, V]."""
        return self.logits(self.features(tokens[:, None], cache=cache)[:, 0])


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
