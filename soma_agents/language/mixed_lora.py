"""Several adapters in one batch: each row of a decoding step is corrected by its own."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from soma_agents.language.architecture import SITES
from soma_agents.language.lora import LoraAdapter
from soma_agents.language.native import LowRank

Pair = tuple[Tensor, Tensor]


class PackedLora:
    """An adapter made ready for decoding, in the model's format.

    Per block and fused matrix there are one A and one B: the A of the parts lie above each other,
    the B form a block diagonal with the scale inside.
    """

    def __init__(self, adapter: LoraAdapter, dtype: torch.dtype) -> None:
        self._shape, self._rank = adapter.shape, adapter.config.rank
        self._names = {
            site: names
            for site in SITES
            if (names := [name for name in SITES[site] if name in adapter.a])
        }
        with torch.no_grad():
            self._pairs = [
                {site: self._pack(adapter, layer, site, dtype) for site in self._names}
                for layer in range(adapter.shape.layers)
            ]

    def delta(self, layer: int, site: str, x: Tensor) -> Tensor | None:
        """B(A x) of block `layer`'s `site`, None where the adapter corrects nothing.

        For a step, x (B, inputs), in fp32, since a small bf16 product has a larger fixed cost, and
        as B products of one row, whose results do not depend on B. For a prompt, x (1, T, inputs), in the model's format.
        """
        step = x.dim() == 2  # noqa: PLR2004
        pair = (self._wide if step else self._pairs)[layer].get(site)
        if pair is None:
            return None
        if not step:
            return (x @ pair[0]) @ pair[1]
        down, up = (matrix.expand(len(x), -1, -1) for matrix in pair)
        return torch.bmm(torch.bmm(x.float().unsqueeze(1), down), up).squeeze(1).to(x.dtype)

    @cached_property
    def _wide(self) -> list[dict[str, Pair]]:
        """What steps through torch multiply by."""
        return [
            {site: (down.float(), up.float()) for site, (down, up) in block.items()}
            for block in self._pairs
        ]

    @cached_property
    def low_rank(self) -> LowRank:
        """What our own kernels read; only in bf16."""
        return LowRank([pair for block in self._pairs for pair in self._parted(block)])

    def _parted(self, block: dict[str, Pair]) -> Iterator[Pair | None]:
        """A (rank, inputs) and B (outputs, rank) of each projection of a block."""
        for site, names in SITES.items():
            begin = 0
            for name in names:
                end = begin + self._shape.shape(name)[0]
                if name in self._names.get(site, ()):
                    down, up = block[site]
                    start = self._rank * self._names[site].index(name)
                    part = slice(start, start + self._rank)
                    yield down[:, part].T, up[part, begin:end].T
                else:
                    yield None
                begin = end

    def _pack(self, adapter: LoraAdapter, layer: int, site: str, dtype: torch.dtype) -> Pair:
        names, rank, scale = self._names[site], self._rank, adapter.config.scale
        outputs, _ = adapter.shape.site_shape(site)
        down = torch.cat([adapter.a[name][layer] for name in names])
        up = torch.zeros(outputs, rank * len(names))
        row = 0
        for name in SITES[site]:
            end = row + adapter.shape.shape(name)[0]
            if name in names:
                column = rank * names.index(name)
                up[row:end, column : column + rank] = adapter.b[name][layer] * scale
            row = end
        return down.T.contiguous().to(dtype), up.T.contiguous().to(dtype)


class MixedLora:
    """The adapters of a batch's rows; None is the base model alone."""

    def __init__(self, rows: Sequence[PackedLora | None]) -> None:
        self._rows = rows

    def low_ranks(self) -> list[LowRank | None]:
        """What our own kernels read, row by row."""
        return [adapter and adapter.low_rank for adapter in self._rows]

    @cached_property
    def _groups(self) -> list[tuple[PackedLora, Tensor | None]]:
        """Each adapter and its rows, None if that is all."""
        rows = self._rows
        adapters = dict.fromkeys(adapter for adapter in rows if adapter is not None)
        return [
            (adapter, _places(rows, adapter) if len(set(rows)) > 1 else None)
            for adapter in adapters
        ]

    def correct(self, layer: int, site: str, x: Tensor, y: Tensor) -> Tensor:
        """`y` (B, outputs) plus each row's own correction for its input in x (B, inputs)."""
        for adapter, places in self._groups:
            if places is None:
                delta = adapter.delta(layer, site, x)
                y = y if delta is None else y + delta
            elif (delta := adapter.delta(layer, site, x[places])) is not None:
                y = y.index_add(0, places, delta)
        return y


def _places(rows: Sequence[PackedLora | None], adapter: PackedLora) -> Tensor:
    return torch.tensor([place for place, found in enumerate(rows) if found is adapter])
