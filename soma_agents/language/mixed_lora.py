"""Several adapters in one batch: each row of a decoding step is corrected by its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from soma_agents.language.architecture import SITES
from soma_agents.language.lora import LoraAdapter

Pair = tuple[Tensor, Tensor]


class PackedLora:
    """An adapter made ready for decoding: per block and fused matrix one A and one B.

    The A of the parts lie above each other, the B form a block diagonal with the scale inside.
    """

    def __init__(self, adapter: LoraAdapter, dtype: torch.dtype) -> None:
        self._decoding: list[dict[str, Pair]] = []
        with torch.no_grad():
            for layer in range(adapter.shape.layers):
                packed = {site: self._pack(adapter, layer, site) for site in SITES}
                self._decoding.append({site: pair for site, pair in packed.items() if pair})
        self._reading = [
            {site: (down.to(dtype), up.to(dtype)) for site, (down, up) in block.items()}
            for block in self._decoding
        ]

    def delta(self, layer: int, site: str, x: Tensor) -> Tensor | None:
        """B(A x) of block `layer`'s `site`, None where the adapter corrects nothing.

        For a step, x (B, inputs), in fp32, since a small bf16 product has a larger fixed cost, and
        as B products of one row, whose results do not depend on B. For a prompt, x (1, T, inputs), in the model's format.
        """
        step = x.dim() == 2  # noqa: PLR2004
        pair = (self._decoding if step else self._reading)[layer].get(site)
        if pair is None:
            return None
        if not step:
            return (x @ pair[0]) @ pair[1]
        down, up = (matrix.expand(len(x), -1, -1) for matrix in pair)
        return torch.bmm(torch.bmm(x.float().unsqueeze(1), down), up).squeeze(1).to(x.dtype)

    def _pack(self, adapter: LoraAdapter, layer: int, site: str) -> Pair | None:
        names = [name for name in SITES[site] if name in adapter.a]
        if not names:
            return None
        rank, scale = adapter.config.rank, adapter.config.scale
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
        return down.T.contiguous().float(), up.T.contiguous().float()


class MixedLora:
    """The adapters of a batch's rows; None is the base model alone."""

    def __init__(self, rows: Sequence[PackedLora | None]) -> None:
        adapters = dict.fromkeys(adapter for adapter in rows if adapter is not None)
        self._groups = [
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
