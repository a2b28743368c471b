"""The peer of `bench.train` and `bench.learn`: a plain GPT the way nanoGPT does it.

Eager torch: LayerNorm, GELU, learned positions, tied head, fused attention, float32 weights with bf16
autocast over them or without, AdamW with decay on matrices alone, clipping at 1. It has nothing of
SOMA's but the names of the two number formats.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from soma_agents.language.precision import Format


class Block(nn.Module):
    """Attention, then an MLP with GELU, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        B, T, C = x.shape
        parts = self.qkv(self.norm1(x)).split(C, dim=2)
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainGpt(nn.Module):
    """Token ids in, mean cross-entropy out."""

    def __init__(
        self, *, vocab: int, layers: int, heads: int, width: int, inner: int, context: int
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.tokens.weight
        self.apply(_initialise)
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(weight, 0.0, 0.02 / math.sqrt(2 * layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean nats of tokens (B, T + 1) behind the first of each row."""
        logits = self.logits(tokens[:, :-1])
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) → (B, T, V)."""
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def optimizer(self, rate: float) -> torch.optim.AdamW:
        """AdamW as nanoGPT sets it: betas (0.9, 0.95), decay 0.1 on what has two dimensions."""
        matrices = [p for p in self.parameters() if p.dim() > 1]
        others = [p for p in self.parameters() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def computing_in(form: Format) -> torch.autocast:
    """What the peer's forward passes run under: bf16 autocast, or nothing."""
    return torch.autocast("cpu", torch.bfloat16, enabled=form == "bfloat16")


def step(
    model: PlainGpt, optimizer: torch.optim.Optimizer, batches: list[Tensor], form: Format
) -> float:
    """One optimiser step over micro-batches of tokens (B, T + 1); the mean loss."""
    total = 0.0
    for batch in batches:
        with computing_in(form):
            loss = model(batch) / len(batches)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total
