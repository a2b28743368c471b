"""A mixture of experts while it learns: the arithmetic of `language.mixture`, and its balance.

The router computes in float32, as arXiv:2101.03961 advises (section 2.4).
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

BALANCE = 0.01
"""Weight of the load's imbalance, in nats a token and layer (arXiv:2101.03961, section 2.2)."""

TOGETHER = 64
"""An expert's rows are a multiple of it, the last ones zero: a product's program is compiled and kept
for each number of rows that is met."""

Expert = Callable[[Tensor], Tensor]
"""(N, C) → (N, C)."""


class _Moved(torch.autograd.Function):
    """Rows of x (N, C) to other places of (size, C); what no row is moved to is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return x.new_zeros(size, x.shape[1]).index_copy_(0, places, x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return upstream[0].index_select(0, places), None, None


class _Fetched(torch.autograd.Function):
    """The opposite; no row is fetched twice, so that nothing has to be added up on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        (g,) = upstream
        return g.new_zeros(ctx.size, g.shape[1]).index_copy_(0, places, g), None


def mixed(
    x: Tensor, router: Tensor, experts: Sequence[Expert], chosen: int
) -> tuple[Tensor, Tensor]:
    """What the `chosen` likeliest of the experts say to each of x (N, C), weighted: (N, C).

    And the imbalance of their load, to be made small: experts · Σ share of the choices · mean
    probability (equation 4, over all that are chosen); 1 where it is even.
    """
    likely = F.linear(x.float(), router).softmax(-1)  # (N, E)
    shares, choice = likely.topk(chosen, dim=-1)  # (N, K)
    shares = (shares / shares.sum(-1, keepdim=True)).to(x.dtype)
    counts = choice.flatten().bincount(minlength=len(experts))
    sizes = (counts + TOGETHER - 1) // TOGETHER * TOGETHER
    places = _places(choice.flatten(), counts, sizes)
    lengths = sizes.cpu().tolist()
    each = x[:, None].expand(-1, chosen, -1).reshape(-1, x.shape[1])  # (N · K, C)
    moved = cast("Tensor", _Moved.apply(each, places, sum(lengths)))
    parts = zip(experts, moved.split(lengths), strict=True)
    said = torch.cat([expert(part) for expert, part in parts])
    fetched = cast("Tensor", _Fetched.apply(said, places)).view(len(x), chosen, -1)
    imbalance = len(experts) * (counts / counts.sum() * likely.mean(0)).sum()
    return (shares[:, None] @ fetched).squeeze(1), imbalance


def _places(choice: Tensor, counts: Tensor, sizes: Tensor) -> Tensor:
    """Where each choice (N · K) goes: behind one another, from where its expert's rows begin."""
    order = choice.argsort(stable=True)
    gaps = (sizes - counts).cumsum(0) - (sizes - counts)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device) + gaps[choice[order]]
    return places
