"""A block of SOMA-LM while it learns: attention, and an MLP or a mixture of them."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from soma_agents.pretraining.experts import Expert, mixed
from soma_agents.pretraining.kernels import attention, gated_unit, norm, rotated, squared_relu
from soma_agents.pretraining.recipe import Recipe, matrices_of, mlps

Turn = tuple[Tensor, Tensor]
"""Cosines and sines (B or 1, T, D/2)."""


class Block(nn.Module):
    """The matrices of a layer, and what is done with them."""

    def __init__(self, recipe: Recipe, layer: int) -> None:
        super().__init__()
        self.config = config = recipe.model
        self.matrices = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(shape)) for name, shape in matrices_of(config).items()}
        )
        self._recompute = recipe.recompute
        self._window = config.window if config.local(layer) else 0
        self._work: dict[str, Tensor] = {}

    def refresh(self, dtype: torch.dtype) -> None:
        """Take the masters as they are now into a working copy, with which the block computes.

        Masters that are in this format already are computed with themselves.
        """
        if dtype == torch.float32:
            return
        for site, master in self.matrices.items():
            self._work[site] = master.detach().to(dtype).requires_grad_()

    def collect(self) -> None:
        """Add the working copy's gradients to the masters' in float32."""
        for site, leaf in self._work.items():
            master = self.matrices[site]
            if leaf.grad is not None and master.grad is not None:
                master.grad += leaf.grad
                leaf.grad = None

    def forward(self, x: Tensor, turn: Turn, router: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, T, C) → (B, T, C), and the imbalance of its experts, 0 without any."""
        if self._recompute and torch.is_grad_enabled():
            return checkpoint(self._through, x, turn, router, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return self._through(x, turn, router)

    def _through(self, x: Tensor, turn: Turn, router: Tensor | None) -> tuple[Tensor, Tensor]:
        x = x + self._attend(norm(x, self.config.norm_eps), turn)
        thought, imbalance = self._think(norm(x, self.config.norm_eps), router)
        return x + thought, imbalance

    def _think(self, x: Tensor, router: Tensor | None) -> tuple[Tensor, Tensor]:
        experts: list[Expert] = [partial(self._mlp, sites=sites) for sites in mlps(self.config)]
        if router is None:
            return experts[0](x), x.new_zeros((), dtype=torch.float32)
        y, imbalance = mixed(x.flatten(0, 1), router, experts, self.config.experts_per_token)
        return y.view(x.shape), imbalance

    def _mlp(self, x: Tensor, sites: tuple[str, str]) -> Tensor:
        expand, contract = sites
        activate = gated_unit if self.config.gated else squared_relu
        return self._project(activate(self._project(x, expand)), contract)

    def _attend(self, x: Tensor, turn: Turn) -> Tensor:
        B, T, _ = x.shape
        H, G, D = self.config.heads, self.config.kv_heads, self.config.head_dim
        heads = self._project(x, "qkv").view(B, T, -1, D)
        q, k = heads[:, :, :H], heads[:, :, H : H + G]
        if self.config.head_norm:
            q, k = norm(q, self.config.norm_eps), norm(k, self.config.norm_eps)
        cos, sin = turn
        q = rotated(q, cos * D**-0.5, sin * D**-0.5)  # attention wants its queries scaled
        k = rotated(k, cos, sin)
        v = heads[:, :, H + G :].transpose(1, 2).contiguous()
        y = attention(q, k, v, self._window).transpose(1, 2).reshape(B, T, -1)
        return self._project(y, "out")

    def _project(self, x: Tensor, site: str) -> Tensor:
        """Without a working copy the parameter itself is in the format that is computed in."""
        return F.linear(x, self._work[site] if self._work else self.matrices[site])
