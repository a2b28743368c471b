"""The decoder that serving and training share: the LLaMA family, and what others differ in.

RMSNorm (arXiv:1910.07467), rotary positions (arXiv:2104.09864), grouped-query attention
(arXiv:2305.13245), SwiGLU (arXiv:2002.05202). Weights are laid out as in the `transformers`
library, with the projections that read the same input fused into one matrix.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from soma_agents.language.activations import ACTIVATIONS
from soma_agents.language.architecture import TransformerConfig
from soma_agents.language.mixture import Mixture


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
    positions: Tensor, config: TransformerConfig, dtype: torch.dtype, *, local: bool = False
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (…, R) that rotate the first R dimensions of heads at `positions` (…)."""
    size = config.rotated
    theta = (local and config.local_rope_theta) or config.rope_theta
    steps = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() / theta ** (steps / max(size, 1))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + R/2) of the first R of x (…, heads, D) by cos, sin (…, 1, R)."""
    if (size := cos.shape[-1]) < x.shape[-1]:
        return torch.cat((rotate(x[..., :size], cos, sin), x[..., size:]), dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def norm_of(config: TransformerConfig, size: int) -> nn.Module:
    """A norm over `size` numbers, as the model has them between its layers."""
    return (nn.LayerNorm if config.norm == "layer" else RMSNorm)(size, eps=config.norm_eps)


def embedding_of(rows: int, size: int) -> nn.Embedding:
    """An embedding; where only shapes are wanted nothing is drawn.

    Drawing on the meta device would have torch import its compiler, which takes seconds.
    """
    weight = torch.empty(rows, size)
    if not weight.is_meta:
        nn.init.normal_(weight)
    return nn.Embedding(rows, size, _weight=weight)


def sight(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """(queries, keys), True where the last `queries` of `keys` tokens may look."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return seen.triu(keys - queries - window + 1) if window else seen


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
    """Attention, then an MLP, each behind a norm and added to the stream."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.window = config.window if config.local(layer) else 0
        self.attention_norm = norm_of(config, config.d_model)
        self.mlp_norm = norm_of(config, config.d_model)
        for site in config.sites:
            outputs, inputs = config.site_shape(site)
            self.add_module(site, nn.Linear(inputs, outputs, bias=site in config.biases))
        if config.head_norm:
            self.query_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.key_norm = RMSNorm(config.head_dim, config.norm_eps)
        if config.experts:
            self.mixture = Mixture(config)
        if config.post_norm:
            self.attention_post_norm = norm_of(config, config.d_model)
            self.mlp_post_norm = norm_of(config, config.d_model)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        *,
        cache: KeyValueCache | None = None,
        lora: Lora | None = None,
    ) -> Tensor:
        """(B, T, C) → (B, T, C); `turn` is the rotation of the tokens' positions."""
        attended = self._attend(self.attention_norm(x), turn, cache, lora)
        if self.config.post_norm:
            attended = self.attention_post_norm(attended)
        if self.config.parallel:
            return x + attended + self._think(x, lora)
        x = x + attended
        return x + self._think(x, lora)

    def _think(self, x: Tensor, lora: Lora | None) -> Tensor:
        x = self.mlp_norm(x)
        y = self.mixture(x) if self.config.experts else self._mlp(x, lora)
        return self.mlp_post_norm(y) if self.config.post_norm else y

    def _mlp(self, x: Tensor, lora: Lora | None) -> Tensor:
        activate = ACTIVATIONS[self.config.activation]
        hidden = self._project("gate_up", x, lora)
        if self.config.gated:
            gate, up = hidden.chunk(2, dim=-1)
            return self._project("down", activate(gate) * up, lora)
        return self._project("down", activate(hidden), lora)

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
        asking = heads[:, :, :rotated]
        if config.head_norm:
            q, k = asking.split((config.heads, config.kv_heads), dim=2)
            asking = torch.cat((self.query_norm(q), self.key_norm(k)), dim=2)
        turned = rotate(asking, *turn) if config.rotated else asking
        q, k = turned.transpose(1, 2).split((config.heads, config.kv_heads), dim=1)
        v = heads[:, :, rotated:].transpose(1, 2)  # (B, Hkv, T, D), as k
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        S, mask = k.shape[2], None
        if S > T or 0 < self.window < S:
            mask = sight(T, S, self.window, x.device)
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
        self.embedding = embedding_of(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        if config.learned_positions:
            self.positions = embedding_of(config.context, config.d_model)
        self.norm = norm_of(config, config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias="head" in config.biases)
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
        """Weights drawn from N(0, 0.02²), no biases; the same for the same seed."""
        transformer = cls(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in transformer.named_parameters():
                if weight.dim() > 1:
                    weight.normal_(0, 0.02, generator=generator)
                elif name.endswith("bias"):
                    weight.zero_()
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

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the first block reads of `tokens` (…) at `positions` (…): (…, C)."""
        x = self.embedding(tokens)
        if self.config.embedding_scale != 1:
            # Rounded to the weights' format first, as the models that do this were trained.
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype)
        return x + self.positions(positions) if self.config.learned_positions else x

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
        x = self.embed(tokens, positions)
        turn = rotation(positions[..., None], self.config, x.dtype)  # (B, T, 1, R)
        near = turn
        if self.config.local_rope_theta:
            near = rotation(positions[..., None], self.config, x.dtype, local=True)
        for layer, block in enumerate(self.blocks):
            x = block(x, near if self.config.local(layer) else turn, cache=cache, lora=lora)
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
