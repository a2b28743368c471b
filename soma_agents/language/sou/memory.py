"""What a model takes of a machine: bytes on disk, of weights in memory, and of each stream's cache."""

import math
from dataclasses import dataclass

from soma_agents.language import native
from soma_agents.language.architecture import SITES, TransformerConfig
from soma_agents.language.cache import blocks
from soma_agents.language.linear import GROUP, TILE
from soma_agents.language.native import kernels
from soma_agents.language.sou.blocks import BITS, FLOATS
from soma_agents.language.sou.reader import SouFile
from soma_agents.language.transformer import weight_shapes

BF16 = 2
"""Bytes of a number as the engine computes."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes. `weights` are dense, for prompts; `products` are the blocks that decoding reads."""

    file: int
    parameters: int
    weights: int
    products: int
    cache_per_token: int
    context: int
    streams: int

    @property
    def cache(self) -> int:
        """Keys and values of all streams at full context."""
        return self.cache_per_token * blocks(self.context) * self.streams

    @property
    def total(self) -> int:
        """What the engine holds when every stream has filled its context."""
        return self.weights + self.products + self.cache


def plan_of(file: SouFile, *, context: int, streams: int) -> MemoryPlan:
    """What serving this file in bf16 takes with so many streams of `context` tokens.

    The file has every tensor that its sizes ask for (`SouCheckpoint`).
    """
    config = file.directory.config
    names = weight_shapes(config)
    parameters = sum(math.prod(shape) for shape in names.values())
    return MemoryPlan(
        file=sum(piece.bytes for piece in file.directory.pieces),
        parameters=parameters,
        weights=parameters * BF16,
        products=sum(_product_bytes(file, name) for name in names),
        cache_per_token=cache_bytes_per_token(config),
        context=context,
        streams=streams,
    )


def cache_bytes_per_token(config: TransformerConfig) -> int:
    """Bytes of keys and values that one token leaves behind."""
    return 2 * config.layers * config.kv_heads * config.head_dim * BF16


def _product_bytes(file: SouFile, name: str) -> int:
    """Bytes of a matrix in the form in which decoding multiplies by it, beside the dense one."""
    piece = file.tensors[name]
    head = "embedding.weight" if file.directory.config.tied_embeddings else "head.weight"
    if name != head and name.split(".")[-2] not in SITES:
        return 0  # it multiplies nothing, or always densely
    adapter, numbers = file.directory.adapter, math.prod(piece.shape)
    corrected = adapter is not None and _corrected(name, adapter.targets)
    if piece.kind in FLOATS or corrected or piece.shape[0] % TILE:
        ours = kernels() and not piece.shape[0] % native.TILE and not piece.shape[1] % GROUP
        return numbers * BF16 if ours else 0
    planes = 2 if BITS[piece.kind] > 4 else 1  # noqa: PLR2004 - bits of a plane
    tables = 1 if kernels() else planes  # see `DoubleBlockLinear`
    return numbers // 2 * planes + numbers // GROUP * 2 * BF16 * tables


def _corrected(name: str, targets: tuple[str, ...]) -> bool:
    return not set(SITES.get(name.split(".")[-2], ())).isdisjoint(targets)
