"""One decoding step for a batch of sequences: the transformer's arithmetic for one new token each.

`Transformer` is the oracle: in fp32 both give the same logits up to rounding. Here products read
quantised weights where they can, and every row is computed the same whatever the other rows are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from soma_agents.language.activations import ACTIVATIONS
from soma_agents.language.cache import BatchCache, blocks
from soma_agents.language.checkpoint import Checkpoint, open_checkpoint
from soma_agents.language.linear import BiasedLinear, DenseLinear, Linear
from soma_agents.language.mixed_lora import MixedLora
from soma_agents.language.model import LanguageModel
from soma_agents.language.transformer import Block, RMSNorm, rotation

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class View:
    """Where the new tokens stand and what they see, in global or in local layers."""

    cos: Tensor
    """(B, 1, R)"""
    sin: Tensor
    """(B, 1, R), the first half negated."""
    mask: Tensor
    """(B, 1, 1, L), added to the attention scores."""


@dataclass(frozen=True, slots=True)
class DecoderBlock:
    """The weights of one block."""

    attention_norm: Norm
    mlp_norm: Norm
    head_norms: tuple[Norm, Norm] | None
    """Of queries and keys."""
    post_norms: tuple[Norm, Norm] | None
    """Behind attention and behind the MLP."""
    local: bool
    linears: dict[str, Linear]
    """By site."""
    mixture: Norm | None
    """In the place of gate_up and down."""


@dataclass(frozen=True, slots=True)
class Step:
    """What all blocks need to know of a step."""

    rows: Tensor
    """(B)"""
    positions: Tensor
    """(B) of the new tokens."""
    wide: View
    near: View
    lora: MixedLora | None


class Decoder:
    """A language model made ready to continue many sequences at once."""

    def __init__(self, model: LanguageModel) -> None:
        self._config = model.config
        self._transformer = model.transformer
        self._dtype = model.transformer.embedding.weight.dtype
        self._norm = _norm(model.transformer.norm)
        self._activate = ACTIVATIONS[model.config.activation]
        self._turns = self._table(local=False)
        self._near_turns = self._table(local=True) if model.config.window else self._turns
        self._blocks, self._head = _linears(model)

    def step(self, tokens: Tensor, cache: BatchCache, lora: MixedLora | None) -> Tensor:
        """Store `tokens` (B) behind their rows of `cache` and return logits (B, V) in fp32."""
        cache.grow()
        positions = torch.tensor(cache.lengths)
        places = torch.arange(blocks(max(cache.lengths) + 1))
        beyond = places > positions[:, None]  # (B, L)
        wide = near = self._view(self._turns, positions, beyond)
        if window := self._config.window:
            far = beyond | (places <= positions[:, None] - window)
            near = self._view(self._near_turns, positions, far)
        step = Step(torch.arange(len(tokens)), positions, wide, near, lora)
        x = self._transformer.embed(tokens, positions)
        for layer, stored in enumerate(cache.layers):
            x = self._block(layer, x, stored, step)
        cache.lengths = [length + 1 for length in cache.lengths]
        return self.head(self._norm(x))

    def head(self, x: Tensor) -> Tensor:
        """Logits (B, V) in fp32 of normed states (B, C)."""
        return self._head(x).float()

    def _table(self, *, local: bool) -> tuple[Tensor, Tensor]:
        """Cosines and sines (context, R) of every position, half the sines negated."""
        every = torch.arange(self._config.context)
        cos, sin = rotation(every, self._config, self._dtype, local=local)
        half = self._config.rotated // 2
        return cos, torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)

    def _view(self, turns: tuple[Tensor, Tensor], positions: Tensor, hidden: Tensor) -> View:
        mask = torch.zeros(hidden.shape, dtype=self._dtype).masked_fill_(hidden, -torch.inf)
        cos, sin = turns
        return View(cos[positions][:, None], sin[positions][:, None], mask[:, None, None])

    def _block(self, layer: int, x: Tensor, stored: Tensor, step: Step) -> Tensor:
        block = self._blocks[layer]

        def project(site: str, x: Tensor) -> Tensor:
            y = block.linears[site](x)
            return y if step.lora is None else step.lora.correct(layer, site, x, y)

        qkv = project("qkv", block.attention_norm(x))
        attended = project("out", self._attend(block, qkv, stored, step))
        if block.post_norms:
            attended = block.post_norms[0](attended)
        seen = x if self._config.parallel else x + attended
        thought = block.mlp_norm(seen)
        if block.mixture:
            thought = block.mixture(thought)
        else:
            hidden = project("gate_up", thought)
            if self._config.gated:
                gate, up = hidden.chunk(2, -1)
                hidden = self._activate(gate) * up
            else:
                hidden = self._activate(hidden)
            thought = project("down", hidden)
        if block.post_norms:
            thought = block.post_norms[1](thought)
        return (x + attended if self._config.parallel else seen) + thought

    def _attend(self, block: DecoderBlock, qkv: Tensor, stored: Tensor, step: Step) -> Tensor:
        H, K, D = self._config.heads, self._config.kv_heads, self._config.head_dim
        view = step.near if block.local else step.wide
        B, L = len(qkv), view.mask.shape[-1]
        heads = qkv.view(B, -1, D)
        asking = heads[:, : H + K]
        if block.head_norms:
            norm_q, norm_k = block.head_norms
            asking = torch.cat((norm_q(asking[:, :H]), norm_k(asking[:, H:])), dim=1)
        rotated = self._rotated(asking, view)
        fresh = torch.cat((rotated[:, H:], heads[:, H + K :]), dim=1)  # (B, 2K, D)
        stored[step.rows, :, step.positions] = fresh
        y = F.scaled_dot_product_attention(
            rotated[:, :H].view(B, K, H // K, D), stored[:B, :K, :L], stored[:B, K:, :L], view.mask
        )
        return y.reshape(B, H * D)

    def _rotated(self, heads: Tensor, view: View) -> Tensor:
        if (size := self._config.rotated) == 0:
            return heads
        turned = heads[..., :size]
        turned = turned * view.cos + turned.roll(size // 2, -1) * view.sin
        return turned if size == heads.shape[-1] else torch.cat((turned, heads[..., size:]), -1)


def _linears(model: LanguageModel) -> tuple[list[DecoderBlock], Linear]:
    stored = None
    if model.path is not None and model.transformer.embedding.weight.dtype == torch.bfloat16:
        stored = open_checkpoint(model.path)
    try:
        blocks = [_block(model, layer, stored) for layer in range(model.config.layers)]
        return blocks, _linear(model.transformer.head, "head.weight", stored)
    finally:
        if stored is not None:
            stored.close()


def _block(model: LanguageModel, layer: int, stored: Checkpoint | None) -> DecoderBlock:
    block, config = cast("Block", model.transformer.blocks[layer]), model.config
    linears = {
        site: _linear(block.linear(site), f"blocks.{layer}.{site}.weight", stored)
        for site in config.sites
    }
    return DecoderBlock(
        _norm(block.attention_norm),
        _norm(block.mlp_norm),
        (_norm(block.query_norm), _norm(block.key_norm)) if config.head_norm else None,
        (_norm(block.attention_post_norm), _norm(block.mlp_post_norm))
        if config.post_norm
        else None,
        config.local(layer),
        linears,
        block.mixture if config.experts else None,
    )


def _linear(dense: nn.Linear, name: str, stored: Checkpoint | None) -> Linear:
    found = None if stored is None else stored.linear(name)
    bias = cast("Tensor | None", dense.bias)
    if found is None:
        return DenseLinear(dense.weight, bias)
    return found if bias is None else BiasedLinear(found, bias)


def _norm(module: nn.Module) -> Norm:
    """A norm's arithmetic without the cost of calling a module."""
    if isinstance(module, nn.LayerNorm):
        size, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
        return lambda x: F.layer_norm(x, size, weight, bias, eps)
    norm = cast("RMSNorm", module)
    shape, scale, least = norm.weight.shape, norm.weight, norm.eps
    return lambda x: F.rms_norm(x, shape, scale, least)
