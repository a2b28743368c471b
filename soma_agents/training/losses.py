"""What training minimises, computed from hidden states at target positions only.

The vocabulary is large (SmolLM2: 49,152) against the width (576), so the head costs more than two
layers: logits are made only where there is a target, in blocks of rows, and the gradient with
regard to the hidden states is taken in the same pass, because the head itself is frozen.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 128
"""Rows of logits alive at a time: 128 x 49,152 x 4 bytes = 25 MB."""


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of each row, its gradient kept as (N, D) instead of logits (N, V)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        for rows in _blocks(len(hidden)):
            logits = F.linear(hidden[rows], head).float()
            index = targets[rows, None]
            total = logits.logsumexp(-1, keepdim=True)
            losses[rows] = (total - logits.gather(-1, index)).squeeze(-1)
            slope = logits.sub_(total).exp_()
            slope.scatter_add_(-1, index, torch.full_like(total, -1.0))
            gradient[rows] = slope.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0][:, None].to(gradient.dtype), None, None


class _Divergence(torch.autograd.Function):
    """KL(reference || model) of each row, over the whole vocabulary."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, reference: Tensor) -> Tensor:
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        for rows in _blocks(len(hidden)):
            ours = F.linear(hidden[rows], head).float().log_softmax(-1)
            theirs = F.linear(reference[rows], head).float().log_softmax(-1)
            wanted = theirs.exp()
            losses[rows] = (wanted * theirs.sub_(ours)).sum(-1)
            gradient[rows] = ours.exp_().sub_(wanted).to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0][:, None].to(gradient.dtype), None, None


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, ROWS):
        yield slice(start, min(rows, start + ROWS))


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Nats of each target: hidden (N, D), frozen head (V, D), targets (N,) → (N,) in float32."""
    return _CrossEntropy.apply(hidden, head, targets)  # pyright: ignore[reportReturnType]


def divergence(hidden: Tensor, head: Tensor, reference: Tensor) -> Tensor:
    """KL(reference || model) in nats of each row: hidden and reference (N, D) → (N,) in float32.

    Both go through the same frozen head (V, D); the gradient reaches `hidden` alone.
    """
    return _Divergence.apply(hidden, head, reference)  # pyright: ignore[reportReturnType]


def preference(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7) of each pair.

    `chosen` and `rejected` (P,) are how much likelier, in nats, the model finds each whole reply
    than the reference does: log pi(y|x) - log ref(y|x).
    """
    return -F.logsigmoid(beta * (chosen - rejected))
