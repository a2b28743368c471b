"""A mixture of experts while it learns: the arithmetic of `language.mixture`, and its balance.

The router computes in float32, as arXiv:2101.03961 advises (section 2.4).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BALANCE = 0.01
"""Weight of the load's imbalance, in nats a token and layer (arXiv:2101.03961, section 2.2)."""

Expert = Callable[[Tensor], Tensor]
"""(N, C) → (N, C)."""


class _Reordered(torch.autograd.Function):
    """Rows of x in a new order; back by the opposite order, which adds nothing up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return upstream[0].index_select(0, back), None, None


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
    order = choice.flatten().argsort(stable=True)
    back = order.argsort()
    counts = choice.flatten().bincount(minlength=len(experts))
    each = x[:, None].expand(-1, chosen, -1).reshape(-1, x.shape[1])  # (N · K, C)
    parts = _sorted(each, order, back).split(counts.tolist())
    said = torch.cat([expert(part) for expert, part in zip(experts, parts, strict=True)])
    by_token = _sorted(said, back, order).view(len(x), chosen, -1)
    imbalance = len(experts) * (counts / counts.sum() * likely.mean(0)).sum()
    return (shares[:, None] @ by_token).squeeze(1), imbalance


def _sorted(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    return _Reordered.apply(x, order, back)  # pyright: ignore[reportReturnType]
