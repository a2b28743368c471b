"""A LoRA adapter in the form that trains fast on a CPU.

The masters are stacked over layers in float32. Going through them in every micro-batch would cost
a cast and, in the backward pass, a zeroed gradient of the whole stack for each layer. Here they
are taken apart once an optimiser step: leaves in the base's number format for each block and fused
matrix, with the B of several projections side by side in one block-diagonal matrix. The leaves'
gradients are added to the masters' in float32 after each micro-batch.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from soma_agents.language.architecture import SITES
from soma_agents.language.lora import LoraAdapter


class Adaptation:
    """What the transformer asks for corrections while an adapter is trained."""

    def __init__(self, adapter: LoraAdapter, dtype: torch.dtype) -> None:
        self._adapter = adapter
        self._dtype = dtype
        self._leaves: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take the masters as they are now; their gradients become zero."""
        adapter = self._adapter
        for parameter in adapter.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for site in SITES:
            names = self._targets(site)
            for layer in range(adapter.shape.layers if names else 0):
                down = torch.cat([adapter.a[name].detach()[layer] for name in names])
                up = down.new_zeros(adapter.shape.site_shape(site)[0], len(down))
                for name, rows, columns in self._places(site):
                    up[rows, columns] = adapter.b[name].detach()[layer] * adapter.config.scale
                self._leaves[layer, site] = (self._leaf(down), self._leaf(up))

    def delta(self, layer: int, site: str, x: Tensor) -> Tensor | None:
        """Scale · B(A x) of the projections inside `site`, side by side; None without any."""
        leaves = self._leaves.get((layer, site))
        return None if leaves is None else F.linear(F.linear(x, leaves[0]), leaves[1])

    @torch.no_grad()
    def collect(self) -> None:
        """Add the leaves' gradients to the masters'."""
        for (layer, site), (down, up) in self._leaves.items():
            if down.grad is None or up.grad is None:
                continue
            for name, rows, columns in self._places(site):
                a, b = self._adapter.a[name].grad, self._adapter.b[name].grad
                assert a is not None  # noqa: S101 - refresh() made them
                assert b is not None  # noqa: S101
                a[layer] += down.grad[columns]
                b[layer].add_(up.grad[rows, columns], alpha=self._adapter.config.scale)
            down.grad = up.grad = None

    def _leaf(self, weight: Tensor) -> Tensor:
        return weight.to(self._dtype).requires_grad_()

    def _targets(self, site: str) -> list[str]:
        return [name for name in SITES[site] if name in self._adapter.a]

    def _places(self, site: str) -> Iterator[tuple[str, slice, slice]]:
        """Each projection's rows in the fused output and columns in the fused rank."""
        rank, row, column = self._adapter.config.rank, 0, 0
        for name in SITES[site]:
            outputs = self._adapter.shape.shape(name)[0]
            if name in self._adapter.a:
                yield name, slice(row, row + outputs), slice(column, column + rank)
                column += rank
            row += outputs
