"""What the rows of a batch have in common at their start goes through the model once.

Short conversations under one system prompt are half prefix.
"""

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from soma_agents.language.transformer import Lora, Transformer

WORTHWHILE = 8
"""Tokens below which a prefix is not set apart."""


class SharedPrefix:
    """Keys and values of one prefix, put before those of every row. Gradients flow through it."""

    def __init__(self) -> None:
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """First call of a layer: keep (1, Hkv, P, D). Second: put it before (B, Hkv, T, D)."""
        if layer not in self._layers:
            self._layers[layer] = (keys, values)
            return keys, values
        before, with_values = (
            kept.expand(len(keys), -1, -1, -1) for kept in self._layers.pop(layer)
        )
        return torch.cat((before, keys), dim=2), torch.cat((with_values, values), dim=2)

    def advance(self, tokens: int) -> None:
        """All layers have kept the prefix, or used it."""
        self.length += tokens


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    columns = zip(*rows, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def hidden_behind_prefix(
    transformer: Transformer, tokens: Tensor, prefix: int, *, lora: Lora | None = None
) -> Tensor:
    """`Transformer.hidden` of rows (B, T) that share their first `prefix` tokens.

    Only the hidden states behind the prefix are made: (B, T - prefix, C).
    """
    if not prefix:
        return transformer.hidden(tokens, lora=lora)
    cache = SharedPrefix()
    transformer.hidden(tokens[:1, :prefix], cache=cache, lora=lora)
    return transformer.hidden(tokens[:, prefix:], cache=cache, lora=lora)


def worthwhile_prefix(rows: Sequence[Sequence[int]], *, at_most: int) -> int:
    """The common prefix to set apart, up to `at_most` tokens; 0 when that gains nothing."""
    found = min(common_prefix(rows), at_most) if len(rows) > 1 else 0
    return found if found >= WORTHWHILE else 0
