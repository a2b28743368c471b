"""The decoder of the LLaMA family that serving and training share.

RMSNorm (arXiv:1910.07467), rotary positions (arXiv:2104.09864), grouped-query attention
(arXiv:2305.13245), SwiGLU (arXiv:2002.05202). Weights are laid out as in the `transformers`
library, with the projections that read the same input fused into one matrix.
"""

import math
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arbiters.errors import InvalidError

SITES: dict[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "out": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""Fused matrices of a block → the projections inside, in the order of their rows."""

MOST_CONTEXT = 1 << 20
"""Tokens. Tables of rotations have a row for each: a file must not ask for any number of them."""

PROJECTIONS: tuple[str, ...] = tuple(name for names in SITES.values() for name in names)


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Sizes of a transformer. `context` is in tokens."""

    vocab_size: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    context: int
    rope_theta: float
    norm_eps: float
    tied_embeddings: bool

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            InvalidError: names the field and its value.
        """
        for name in ("vocab_size", "layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff"):
            if getattr(self, name) < 1:
                raise InvalidError(f"transformer {name} = {getattr(self, name)!r}; use 1 or more")
        if self.heads % self.kv_heads:
            raise InvalidError(
                f"transformer heads = {self.heads!r} is no multiple of kv_heads = {self.kv_heads!r}"
            )
        if not 1 <= self.context <= MOST_CONTEXT:
            raise InvalidError(
                f"transformer context = {self.context!r}; use 1 to {MOST_CONTEXT!r} tokens"
            )
        for name in ("rope_theta", "norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidError(f"transformer {name} = {getattr(self, name)!r}; use above 0")
        if self.head_dim % 2:
            raise InvalidError(f"transformer head_dim = {self.head_dim!r}; rotation needs it even")

    def shape(self, projection: str) -> tuple[int, int]:
        """(outputs, inputs) of a projection."""
        width, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (width, self.d_model),
            "k_proj": (narrow, self.d_model),
            "v_proj": (narrow, self.d_model),
            "o_proj": (self.d_model, width),
            "gate_proj": (self.d_ff, self.d_model),
            "up_proj": (self.d_ff, self.d_model),
            "down_proj": (self.d_model, self.d_ff),
        }[projection]

    def site_shape(self, site: str) -> tuple[int, int]:
        """(outputs, inputs) of a fused matrix."""
        shapes = [self.shape(name) for name in SITES[site]]
        return sum(outputs for outputs, _ in shapes), shapes[0][1]


class Lora(Protocol):
    """Low-rank corrections to the fused matrices."""

    def delta(self, layer: int, site: str, x: Tensor) -> Tensor | None:
        """What to add to the output of `site` of block `layer` for input x (B, T, inputs)."""
        ...


class KeyValueCache(Protocol):
    """Keys and values of the tokens before those of a forward pass."""

    @property
    def length(self) -> int:
        """Tokens stored so far."""
        ...

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, Hkv, T, D) behind `length`, return all (B, Hkv, length + T, D)."""
        ...

    def advance(self, tokens: int) -> None:
        """All layers have stored `tokens` more."""
        ...


class RMSNorm(nn.Module):
    """x / root mean square of x, times a learnt scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, size) → (…, size)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotation(
    positions: Tensor, config: TransformerConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (…, D) that rotate heads at `positions` (…)."""
    steps = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() / config.rope_theta ** (steps / config.head_dim)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + D/2) of x (…, heads, D) by the angles of cos, sin (…, 1, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √D) v of q (B, H, T, D) and k, v (B, Hkv, S, D) → (B, H, T, D).

    `mask` (T, S) is True where a query may look; None is causal with T = S. Where gradients are
    wanted on a CPU it is written out: the fused kernel's backward pass is some four times slower.
    """
    if not (q.requires_grad and q.device.type == "cpu"):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
    B, H, T, D = q.shape
    groups, S = k.shape[1], k.shape[2]
    hidden = torch.ones(T, S, dtype=torch.bool).triu(1) if mask is None else ~mask
    queries = q.reshape(B, groups, H // groups * T, D)  # the heads of a group share their keys
    weights = (queries @ k.transpose(-1, -2)).view(B, H, T, S) * D**-0.5
    weights = weights.masked_fill(hidden, -torch.inf).softmax(-1)
    return (weights.view(B, groups, H // groups * T, S) @ v).view(B, H, T, D)


class Block(nn.Module):
    """Attention, then SwiGLU, each behind a norm and added to the stream."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        for site in SITES:
            outputs, inputs = config.site_shape(site)
            self.add_module(site, nn.Linear(inputs, outputs, bias=False))

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        *,
        cache: KeyValueCache | None = None,
        lora: Lora | None = None,
    ) -> Tensor:
        """(B, T, C) → (B, T, C); `turn` is the rotation of the tokens' positions."""
        x = x + self._attend(self.attention_norm(x), turn, cache, lora)
        gate, up = self._project("gate_up", self.mlp_norm(x), lora).chunk(2, dim=-1)
        return x + self._project("down", F.silu(gate) * up, lora)

    def linear(self, site: str) -> nn.Linear:
        """The fused matrix of a site."""
        return cast("nn.Linear", self.get_submodule(site))

    def _attend(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        cache: KeyValueCache | None,
        lora: Lora | None,
    ) -> Tensor:
        B, T, _ = x.shape
        config = self.config
        rotated = config.heads + config.kv_heads
        heads = self._project("qkv", x, lora).view(B, T, -1, config.head_dim)
        turned = rotate(heads[:, :, :rotated], *turn)
        q, k = turned.transpose(1, 2).split((config.heads, config.kv_heads), dim=1)
        v = heads[:, :, rotated:].transpose(1, 2)  # (B, Hkv, T, D), as k
        mask = None
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
            if (past := k.shape[2] - T) > 0:
                mask = torch.ones(T, k.shape[2], dtype=torch.bool, device=x.device).tril(past)
        y = attention(q, k, v, mask)
        return self._project("out", y.transpose(1, 2).reshape(B, T, -1), lora)

    def _project(self, site: str, x: Tensor, lora: Lora | None) -> Tensor:
        y = self.linear(site)(x)
        delta = None if lora is None else lora.delta(self.layer, site, x)
        return y if delta is None else y + delta


class Transformer(nn.Module):
    """Token ids in, logits out."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight

    @classmethod
    def from_weights(cls, config: TransformerConfig, weights: dict[str, Tensor]) -> "Transformer":
        """A frozen transformer that uses these tensors as they are, named as in `state_dict`.

        A tied head need not be among them.
        """
        with torch.device("meta"):
            transformer = cls(config)
        if config.tied_embeddings:
            weights = weights | {"head.weight": weights["embedding.weight"]}
        transformer.load_state_dict(weights, assign=True)
        if config.tied_embeddings:
            transformer.head.weight = transformer.embedding.weight
        return transformer.requires_grad_(requires_grad=False).eval()

    @classmethod
    def random(cls, config: TransformerConfig, *, seed: int) -> "Transformer":
        """Weights drawn from N(0, 0.02²), the same for the same seed."""
        transformer = cls(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in transformer.parameters():
                if weight.dim() > 1:
                    weight.normal_(0, 0.02, generator=generator)
        return transformer

    def forward(
        self,
        tokens: Tensor,
        *,
        cache: KeyValueCache | None = None,
        positions: Tensor | None = None,
        lora: Lora | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the tokens that follow each of `tokens` (B, T)."""
        return self.head(self.hidden(tokens, cache=cache, positions=positions, lora=lora))

    def hidden(
        self,
        tokens: Tensor,
        *,
        cache: KeyValueCache | None = None,
        positions: Tensor | None = None,
        lora: Lora | None = None,
    ) -> Tensor:
        """(B, T, C) before the head. `positions` (B, T) default to those behind the cache.

        Attention is causal; with right-padded rows the padding never reaches a real token.
        """
        if positions is None:
            start = 0 if cache is None else cache.length
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        x = self.embedding(tokens)
        cos, sin = rotation(positions[..., None], self.config, x.dtype)  # (B, T, 1, D)
        for block in self.blocks:
            x = block(x, (cos, sin), cache=cache, lora=lora)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.norm(x)


def weight_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a model, without a tied head. Allocates no weights."""
    with torch.device("meta"):
        shapes = {
            name: tuple(weight.shape) for name, weight in Transformer(config).state_dict().items()
        }
    if config.tied_embeddings:
        del shapes["head.weight"]
    return shapes
