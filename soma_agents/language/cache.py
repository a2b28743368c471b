"""Keys and values of tokens already read: of one prompt, and of all requests decoded together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from soma_agents.language.native.pages import zeros
from soma_agents.language.transformer import TransformerConfig

BLOCK = 64
"""Capacities and attended lengths are multiples of it: masked places cost little, and sums over
them come out the same whatever else is in the batch."""


def blocks(tokens: int) -> int:
    """`tokens` rounded up to whole blocks."""
    return -(-tokens // BLOCK) * BLOCK


class PromptCache:
    """Of one sequence: layers of (1, 2 · Hkv, capacity, D), keys before values."""

    def __init__(self, config: TransformerConfig, capacity: int, dtype: torch.dtype) -> None:
        shape = (1, 2 * config.kv_heads, blocks(capacity), config.head_dim)
        self.layers = [torch.zeros(shape, dtype=dtype) for _ in range(config.layers)]
        self._kv_heads = config.kv_heads
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens stored so far."""
        return self._length

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (1, Hkv, T, D) behind `length`, return all (1, Hkv, length + T, D)."""
        end = self._length + keys.shape[2]
        stored = self.layers[layer]
        stored[:, : self._kv_heads, self._length : end] = keys
        stored[:, self._kv_heads :, self._length : end] = values
        return stored[:, : self._kv_heads, :end], stored[:, self._kv_heads :, :end]

    def advance(self, tokens: int) -> None:
        """All layers have stored `tokens` more."""
        self._length += tokens

    def piece(self, start: int, end: int) -> list[Tensor]:
        """A copy of tokens `start` to `end`: layers of (1, 2 · Hkv, end - start, D)."""
        return [stored[:, :, start:end].clone() for stored in self.layers]

    def append(self, piece: Sequence[Tensor]) -> None:
        """Go on with a copied piece."""
        end = self._length + piece[0].shape[2]
        for stored, kept in zip(self.layers, piece, strict=True):
            stored[:, :, self._length : end] = kept
        self._length = end


class BatchCache:
    """Of many sequences: layers of (rows, 2 · Hkv, capacity, D); rows 0 … n-1 are in use.

    Both extents grow by doubling, and all is given back when the last row leaves.
    """

    def __init__(self, config: TransformerConfig, dtype: torch.dtype) -> None:
        self._config = config
        self._dtype = dtype
        self.lengths: list[int] = []
        self.layers: list[Tensor] = []

    def join(self, prompt: PromptCache) -> int:
        """Take a sequence over and return its row."""
        row = len(self.lengths)
        self._reserve(row + 1, prompt.length + 1)
        self.lengths.append(prompt.length)
        for stored, read in zip(self.layers, prompt.layers, strict=True):
            stored[row, :, : prompt.length] = read[0, :, : prompt.length]
        return row

    def leave(self, row: int) -> int | None:
        """Free a row. The last row moves into the gap; returns its old number, if one moved."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if not self.lengths:
            self.layers = []
        if row == last:
            return None
        self.lengths[row] = length
        for stored in self.layers:
            stored[row, :, :length] = stored[last, :, :length]
        return last

    def grow(self, tokens: int) -> None:
        """Make room for so many more tokens in every row."""
        self._reserve(len(self.lengths), max(self.lengths) + tokens)

    def keep(self, row: int, tokens: int) -> None:
        """So many of the tokens stored behind `row` belong to it; the others are written over."""
        self.lengths[row] += tokens

    def _reserve(self, rows: int, length: int) -> None:
        had_rows, had_length = (
            (self.layers[0].shape[0], self.layers[0].shape[2]) if self.layers else (0, 0)
        )
        if rows <= had_rows and length <= had_length:
            return
        rows = _doubled(had_rows, rows)
        capacity = blocks(_doubled(had_length, length))
        heads, size = 2 * self._config.kv_heads, self._config.head_dim
        fresh = zeros((self._config.layers, rows, heads, capacity, size), self._dtype)
        for layer, old in zip(fresh, self.layers, strict=False):
            layer[:had_rows, :, :had_length] = old
        self.layers = list(fresh)


def _doubled(had: int, needed: int) -> int:
    return had if needed <= had else max(needed, 2 * had)
