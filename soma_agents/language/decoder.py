"""One decoding step for a batch of sequences: the transformer's arithmetic for their new tokens.

Of a sequence that is one token, or more where some are drafts of what may follow.

`Transformer` is the oracle: in fp32 both give the same logits up to rounding. Here products read
quantised weights where they can, and every row is computed the same whatever the other rows are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from soma_agents.language.activations import ACTIVATIONS
from soma_agents.language.cache import BatchCache, PromptCache, blocks
from soma_agents.language.checkpoint import Checkpoint, open_checkpoint
from soma_agents.language.linear import BiasedLinear, DenseLinear, Linear
from soma_agents.language.mixed_lora import MixedLora, PackedLora
from soma_agents.language.model import LanguageModel
from soma_agents.language.native import TILE, Kernels, Stack, kernels
from soma_agents.language.transformer import Block, RMSNorm, TransformerConfig, rotation

Norm = Callable[[Tensor], Tensor]

FIXED_ROWS = 3
"""What a step by torch's products costs however few its rows are, in rows."""


@dataclass(frozen=True, slots=True)
class View:
    """Where the new tokens stand and what they see, in global or in local layers."""

    cos: Tensor
    """(B, 1, R)"""
    sin: Tensor
    """(B, 1, R), the first half negated."""
    mask: Tensor | None
    """(B, 1, 1, L), added to the attention scores; our kernel needs none."""
    window: int
    """Newest tokens that are seen; 0 is all."""


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

    slots: Tensor
    """(B) of the cache."""
    positions: Tensor
    """(B) of the new tokens."""
    runs: int
    """Slots in use; each has one new token or more."""
    wide: View
    near: View
    lora: MixedLora | None


class Decoder:
    """A language model made ready to continue many sequences at once."""

    def __init__(self, model: LanguageModel) -> None:
        self._config = model.config
        self._transformer = model.transformer
        self._dtype = model.transformer.embedding.weight.dtype
        self._kernels = kernels() if self._dtype == torch.bfloat16 else None
        self._norm = _norm(model.transformer.norm, self._kernels)
        self._attention = self._kernels if model.config.head_dim % 32 == 0 else None
        self._activated = _activation(model.config, self._kernels)
        self._turns = self._table(local=False)
        self._near_turns = self._table(local=True) if model.config.window else self._turns
        self._blocks, self._head = _linears(model, self._kernels)
        self._stack = _stack(model, self._blocks, self._kernels)
        products = [self._head, *(p for block in self._blocks for p in block.linears.values())]
        self.same_in_any_company = not model.config.experts and not any(
            isinstance(product, DenseLinear) for product in products
        )
        """Whether a row's logits are the same bits whatever the other rows are: only products with
        blocks promise that, so only there drafts can be checked."""

    @property
    def read_alike(self) -> int:
        """Tokens of a prompt up to which each is read the same bits whatever is read with it."""
        return 0 if self._stack is None else self._stack.reads

    @property
    def fixed_rows(self) -> int:
        """What a step costs however few its rows are, in rows."""
        return FIXED_ROWS if self._kernels is None else self._kernels.fixed_rows

    def step(
        self, runs: Sequence[Sequence[int]], cache: BatchCache, lora: MixedLora | None
    ) -> Tensor:
        """Store a run of tokens behind each row of `cache`; logits (B, V) in fp32, run after run.

        The rows' lengths stay as they are: `BatchCache.keep` says how many of a run's tokens count.
        """
        cache.grow(max(map(len, runs)))
        tokens = torch.tensor([token for run in runs for token in run])
        slots = torch.tensor([slot for slot, run in enumerate(runs) for _ in run])
        places = zip(cache.lengths, runs, strict=True)
        positions = torch.tensor([start + i for start, run in places for i in range(len(run))])
        wide = near = self._view(self._turns, positions, 0)
        if window := self._config.window:
            near = self._view(self._near_turns, positions, window)
        step = Step(slots, positions, len(runs), wide, near, lora)
        x = self._transformer.embed(tokens, positions)
        if self._stack:
            adapters = () if lora is None else lora.low_ranks()
            places, turn = (slots, positions), (wide.cos, wide.sin)
            x = self._stack(x, cache.layers, places, turn, adapters)
            return self.head(self._norm(x))
        for layer, stored in enumerate(cache.layers):
            x = self._block(layer, x, stored, step)
        return self.head(self._norm(x))

    def read(self, chunk: Sequence[int], cache: PromptCache, lora: PackedLora | None) -> Tensor:
        """Store a piece of a prompt behind `cache`; the state (1, C) before the head of its end."""
        if self._stack is None or len(chunk) > self._stack.reads:
            tokens = torch.tensor([chunk])
            return self._transformer.hidden(tokens, cache=cache, lora=lora)[0, -1:]
        slots = torch.zeros(len(chunk), dtype=torch.long)
        positions = torch.arange(cache.length, cache.length + len(chunk))
        x = self._transformer.embed(torch.tensor(chunk), positions)
        cos, sin = (every[positions] for every in self._turns)
        adapters = () if lora is None else [lora.low_rank] * len(chunk)
        x = self._stack(x, cache.layers, (slots, positions), (cos, sin), adapters)
        cache.advance(len(chunk))
        return self._norm(x[-1:])

    def head(self, x: Tensor) -> Tensor:
        """Logits (B, V) in fp32 of normed states (B, C)."""
        return self._head(x).float()

    def _table(self, *, local: bool) -> tuple[Tensor, Tensor]:
        """Cosines and sines (context, R) of every position, half the sines negated."""
        every = torch.arange(self._config.context)
        cos, sin = rotation(every, self._config, self._dtype, local=local)
        half = self._config.rotated // 2
        return cos, torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)

    def _view(self, turns: tuple[Tensor, Tensor], positions: Tensor, window: int) -> View:
        cos, sin = turns
        mask = None if self._attention else self._mask(positions, window)
        return View(cos[positions][:, None], sin[positions][:, None], mask, window)

    def _mask(self, positions: Tensor, window: int) -> Tensor:
        places = torch.arange(blocks(int(positions.max()) + 1))
        hidden = places > positions[:, None]  # (B, L)
        if window:
            hidden |= places <= positions[:, None] - window
        mask = torch.zeros(hidden.shape, dtype=self._dtype).masked_fill_(hidden, -torch.inf)
        return mask[:, None, None]

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
            thought = project("down", self._activated(project("gate_up", thought)))
        if block.post_norms:
            thought = block.post_norms[1](thought)
        return (x + attended if self._config.parallel else seen) + thought

    def _attend(self, block: DecoderBlock, qkv: Tensor, stored: Tensor, step: Step) -> Tensor:
        H, K, D = self._config.heads, self._config.kv_heads, self._config.head_dim
        view = step.near if block.local else step.wide
        heads = qkv.view(len(qkv), -1, D)
        if block.head_norms:
            norm_q, norm_k = block.head_norms
            q, k, v = heads.split((H, K, K), dim=1)
            heads = torch.cat((norm_q(q), norm_k(k), v), dim=1)
        if self._attention:
            turn = view.cos, view.sin
            places = step.slots, step.positions
            return self._attention.attend(heads, stored, places, turn, window=view.window)
        rotated = self._rotated(heads[:, : H + K], view)
        fresh = torch.cat((rotated[:, H:], heads[:, H + K :]), dim=1)  # (B, 2K, D)
        stored[step.slots, :, step.positions] = fresh
        return self._attended(rotated[:, :H], stored, view, step)

    def _attended(self, q: Tensor, stored: Tensor, view: View, step: Step) -> Tensor:
        B, H, D = q.shape
        K, mask = self._config.kv_heads, cast("Tensor", view.mask)
        seen = stored[: step.runs, :, : mask.shape[-1]]
        if step.runs < B:  # copied only where it must be
            seen = seen.expand(B, -1, -1, -1) if step.runs == 1 else seen[step.slots]
        y = F.scaled_dot_product_attention(q.view(B, K, H // K, D), seen[:, :K], seen[:, K:], mask)
        return y.reshape(B, H * D)

    def _rotated(self, heads: Tensor, view: View) -> Tensor:
        if (size := self._config.rotated) == 0:
            return heads
        turned = heads[..., :size]
        turned = turned * view.cos + turned.roll(size // 2, -1) * view.sin
        return turned if size == heads.shape[-1] else torch.cat((turned, heads[..., size:]), -1)


def _linears(model: LanguageModel, native: Kernels | None) -> tuple[list[DecoderBlock], Linear]:
    stored = None
    if model.path is not None and model.transformer.embedding.weight.dtype == torch.bfloat16:
        stored = open_checkpoint(model.path)
    try:
        blocks = [_block(model, layer, stored, native) for layer in range(model.config.layers)]
        return blocks, _linear(model.transformer.head, "head.weight", stored, native)
    finally:
        if stored is not None:
            stored.close()


def _block(
    model: LanguageModel, layer: int, stored: Checkpoint | None, native: Kernels | None
) -> DecoderBlock:
    def norm(module: nn.Module) -> Norm:
        return _norm(module, native)

    block, config = cast("Block", model.transformer.blocks[layer]), model.config
    linears = {
        site: _linear(block.linear(site), f"blocks.{layer}.{site}.weight", stored, native)
        for site in config.sites
    }
    return DecoderBlock(
        norm(block.attention_norm),
        norm(block.mlp_norm),
        (norm(block.query_norm), norm(block.key_norm)) if config.head_norm else None,
        (norm(block.attention_post_norm), norm(block.mlp_post_norm)) if config.post_norm else None,
        config.local(layer),
        linears,
        block.mixture if config.experts else None,
    )


def _stack(
    model: LanguageModel, blocks: list[DecoderBlock], native: Kernels | None
) -> Stack | None:
    """All blocks in one call, where that is possible."""
    if native is None or model.config.beyond_llama():
        return None
    norms = [
        (cast("RMSNorm", block.attention_norm).weight, cast("RMSNorm", block.mlp_norm).weight)
        for block in cast("list[Block]", model.transformer.blocks)
    ]
    return native.stack(model.config, norms, [block.linears for block in blocks])


def _linear(
    dense: nn.Linear, name: str, stored: Checkpoint | None, native: Kernels | None
) -> Linear:
    found = None if stored is None else stored.linear(name)
    bias = cast("Tensor | None", dense.bias)
    if found is None and native is not None:
        found = native.dense(dense.weight)
    if found is None:
        return DenseLinear(dense.weight, bias)
    return found if bias is None else BiasedLinear(found, bias)


def _norm(module: nn.Module, native: Kernels | None) -> Norm:
    """A norm's arithmetic without the cost of calling a module."""
    if isinstance(module, nn.LayerNorm):
        size, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
        return lambda x: F.layer_norm(x, size, weight, bias, eps)
    norm = cast("RMSNorm", module)
    shape, scale, least = norm.weight.shape, norm.weight, norm.eps
    if native and len(scale) % TILE == 0:
        return native.rms_norm(scale, least)
    return lambda x: F.rms_norm(x, shape, scale, least)


def _activation(config: TransformerConfig, native: Kernels | None) -> Norm:
    """From what `gate_up` gives to what `down` takes."""
    activate = ACTIVATIONS[config.activation]
    if not config.gated:
        return activate
    if native and config.activation == "silu" and config.d_ff % TILE == 0:
        return native.gated_silu

    def gated(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return activate(gate) * up

    return gated
