"""One decoding step for a batch of sequences: the transformer's arithmetic for one new token each.

`Transformer` is the oracle: in fp32 both give the same logits up to rounding. Here products read
quantised weights where they can, and every row is computed the same whatever the other rows are.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from soma_agents.language.cache import BatchCache, blocks
from soma_agents.language.checkpoint import Checkpoint, open_checkpoint
from soma_agents.language.linear import DenseLinear, Linear
from soma_agents.language.mixed_lora import MixedLora
from soma_agents.language.model import LanguageModel
from soma_agents.language.transformer import SITES, Block, rotation


@dataclass(frozen=True, slots=True)
class DecoderBlock:
    """The weights of one block."""

    attention_norm: Tensor
    mlp_norm: Tensor
    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Step:
    """What all blocks need to know of a step."""

    rows: Tensor
    """(B)"""
    positions: Tensor
    """(B) of the new tokens."""
    cos: Tensor
    """(B, 1, D)"""
    sin: Tensor
    """(B, 1, D), the first half negated."""
    mask: Tensor
    """(B, 1, 1, L), added to the attention scores."""
    lora: MixedLora | None


class Decoder:
    """A language model made ready to continue many sequences at once."""

    def __init__(self, model: LanguageModel) -> None:
        self._config = model.config
        self._embedding = model.transformer.embedding.weight
        self._dtype = self._embedding.dtype
        self._norm = model.transformer.norm.weight
        cos, sin = rotation(torch.arange(model.config.context), model.config, self._dtype)
        self._cos = cos
        half = model.config.head_dim // 2
        self._sin = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
        self._blocks, self._head = _linears(model)

    def step(self, tokens: Tensor, cache: BatchCache, lora: MixedLora | None) -> Tensor:
        """Store `tokens` (B) behind their rows of `cache` and return logits (B, V) in fp32."""
        cache.grow()
        positions = torch.tensor(cache.lengths)
        beyond = torch.arange(blocks(max(cache.lengths) + 1)) > positions[:, None]  # (B, L)
        mask = torch.zeros(beyond.shape, dtype=self._dtype).masked_fill_(beyond, -torch.inf)
        step = Step(
            rows=torch.arange(len(tokens)),
            positions=positions,
            cos=self._cos[positions][:, None],
            sin=self._sin[positions][:, None],
            mask=mask[:, None, None],
            lora=lora,
        )
        x = self._embedding[tokens]
        for layer, stored in enumerate(cache.layers):
            x = self._block(layer, x, stored, step)
        cache.lengths = [length + 1 for length in cache.lengths]
        return self.head(self._normed(x, self._norm))

    def head(self, x: Tensor) -> Tensor:
        """Logits (B, V) in fp32 of normed states (B, C)."""
        return self._head(x).float()

    def _block(self, layer: int, x: Tensor, stored: Tensor, step: "Step") -> Tensor:
        block = self._blocks[layer]

        def project(site: str, linear: Linear, x: Tensor) -> Tensor:
            y = linear(x)
            return y if step.lora is None else step.lora.correct(layer, site, x, y)

        qkv = project("qkv", block.qkv, self._normed(x, block.attention_norm))
        x = x + project("out", block.out, self._attend(qkv, stored, step))
        gate, up = project("gate_up", block.gate_up, self._normed(x, block.mlp_norm)).chunk(2, -1)
        return x + project("down", block.down, F.silu(gate) * up)

    def _attend(self, qkv: Tensor, stored: Tensor, step: "Step") -> Tensor:
        H, K, D = self._config.heads, self._config.kv_heads, self._config.head_dim
        B, L = len(qkv), step.mask.shape[-1]
        heads = qkv.view(B, -1, D)
        rotated = heads[:, : H + K]
        rotated = rotated * step.cos + rotated.roll(D // 2, -1) * step.sin
        fresh = torch.cat((rotated[:, H:], heads[:, H + K :]), dim=1)  # (B, 2K, D)
        stored[step.rows, :, step.positions] = fresh
        y = F.scaled_dot_product_attention(
            rotated[:, :H].view(B, K, H // K, D), stored[:B, :K, :L], stored[:B, K:, :L], step.mask
        )
        return y.reshape(B, H * D)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._config.norm_eps)


def _linears(model: LanguageModel) -> tuple[list[DecoderBlock], Linear]:
    stored = None
    if model.path is not None and model.transformer.embedding.weight.dtype == torch.bfloat16:
        stored = open_checkpoint(model.path)
    try:
        blocks = [_block(model, layer, stored) for layer in range(model.config.layers)]
        head = None if stored is None else stored.linear("head.weight")
    finally:
        if stored is not None:
            stored.close()
    return blocks, head or DenseLinear(model.transformer.head.weight)


def _block(model: LanguageModel, layer: int, stored: Checkpoint | None) -> DecoderBlock:
    block = cast("Block", model.transformer.blocks[layer])
    linears: dict[str, Linear] = {}
    for site in SITES:
        found = None if stored is None else stored.linear(f"blocks.{layer}.{site}.weight")
        linears[site] = found or DenseLinear(block.linear(site).weight)
    return DecoderBlock(block.attention_norm.weight, block.mlp_norm.weight, **linears)
