"""A small GPT over bytes, its data and its step, the same for every launcher.

Model: width 192, 4 layers, 6 heads, 128 positions, 256 byte values, output tied to the embedding (1.85M parameters),
AdamW 3e-4.  Data: the standard library's pydoc_data.topics as bytes.  A batch of a rank is drawn from (step, rank)
alone, so runs with the same number of ranks see the same bytes and must reach the same loss.
"""

import time

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, LAYERS, HEADS, LENGTH, BATCH = 192, 4, 6, 128, 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.token, self.position = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks, self.norm = nn.ModuleList(Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy((self.norm(x) @ self.token.weight.T).flatten(0, 1), targets.flatten())


def corpus():
    from pydoc_data.topics import topics

    return torch.frombuffer(bytearray("\n".join(topics[k] for k in sorted(topics)).encode()), dtype=torch.uint8)


def batch(data, step, rank, size=BATCH):
    random = torch.Generator().manual_seed(1_000_003 * step + rank)
    start = torch.randint(len(data) - LENGTH - 1, (size, 1), generator=random)
    window = data[start + torch.arange(LENGTH + 1)].long()
    return window[:, :-1], window[:, 1:]


def train(model, rank, warm, timed, first_step=lambda: None):
    """-> losses of this rank, seconds of the timed steps.  model is already wrapped for data-parallel work."""
    data, losses = corpus(), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for step in range(warm + timed):
        if step == warm:
            begin = time.perf_counter()
        loss = model(*batch(data, step, rank))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if step == 0:
            first_step()
    return losses, time.perf_counter() - begin
