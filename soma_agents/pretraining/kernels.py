"""The learner's operations, each with its gradient written out.

A CPU spends a training step in matrix products and in passes over memory. Left to automatic
differentiation, a norm or an activation takes three to ten passes; written out it takes one to
three. Everything works on bfloat16 or float32 alike, sums run in float32. The plain forms that
they equal are in `language.transformer`; the tests compare values and gradients. On a GPU the same
is computed, but for attention, for which torch has kernels of its own there.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from soma_agents.language.transformer import sight

QUERIES = 128
"""Rows of an attention block: a causal row of blocks leaves out what lies above the diagonal."""

ALIGNED = 32
"""A block's keys begin at a multiple of it."""

KEPT = 4096
"""Tokens of a row up to which attention keeps its weights for the way back; beyond, it makes them
again a block at a time, as arXiv:2205.14135 does: they would grow with the square of the row."""

STRIDE = 1024
"""Keys of a block in a row beyond that are a multiple of it, the last ones masked: a product's program
is compiled and kept for each number of keys that is met."""

ROWS = 512
"""Rows of logits alive at a time."""


class _Norm(torch.autograd.Function):
    """x / root mean square of x, without a scale of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = torch.rsqrt(size.square_().div_(x.shape[-1]).add_(eps)).to(x.dtype)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        y, inverse = ctx.saved_tensors
        (g,) = upstream
        along = torch.linalg.vecdot(g, y).unsqueeze(-1).div_(-y.shape[-1])
        return torch.addcmul(g, y, along).mul_(inverse), None


class _Rotation(torch.autograd.Function):
    """Turn pairs (i, i + D/2) of x (B, T, H, D) by angles (B or 1, T, D/2); out (B, H, T, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x.transpose(1, 2), cos[:, None], sin[:, None])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        back = _turned(upstream[0].transpose(1, 2), cos[:, :, None], -sin[:, :, None])
        return back, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(x[..., :half], cos, out=y[..., :half])
    torch.mul(x[..., half:], cos, out=y[..., half:])
    y[..., :half].addcmul_(x[..., half:], sin, value=-1)
    y[..., half:].addcmul_(x[..., :half], sin)
    return y


class _Attention(torch.autograd.Function):
    """Causal softmax(q kᵀ) v in blocks of queries; q (B, G, R, T, D), k and v (B, G, T, D).

    G groups of keys, R heads that share one. What is masked is mostly not computed at all.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        B, G, R, _, D = q.shape
        y = torch.empty_like(q)
        weights: list[Tensor] = []
        for start, end, first, last in _blocks(q.shape[3], window):
            rows = q[:, :, :, start:end].reshape(B, G, -1, D)
            weight = _weights(rows, k[:, :, first:last], R, start - first, window)
            seen = weight @ v[:, :, first:last]
            y[:, :, :, start:end] = seen.view(B, G, R, end - start, D)
            if q.shape[3] <= KEPT:
                weights.append(weight)
        ctx.window = window
        ctx.save_for_backward(q, k, v, *weights)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *weights = ctx.saved_tensors
        (g,) = upstream
        B, G, R, T, D = q.shape
        gq = torch.empty_like(q)
        gk, gv = torch.zeros_like(k), torch.zeros_like(v)
        for place, (start, end, first, last) in enumerate(_blocks(T, ctx.window)):
            rows, up = (x[:, :, :, start:end].reshape(B, G, -1, D) for x in (q, g))
            if weights:
                flat = weights[place]
            else:
                flat = _weights(rows, k[:, :, first:last], R, start - first, ctx.window)
            gv[:, :, first:last] += flat.transpose(-1, -2) @ up
            slope = torch.ops.aten._softmax_backward_data(  # noqa: SLF001 — the kernel behind softmax
                up @ v[:, :, first:last].transpose(-1, -2), flat, -1, flat.dtype
            )
            gq[:, :, :, start:end] = (slope @ k[:, :, first:last]).view(B, G, R, end - start, D)
            gk[:, :, first:last] += slope.transpose(-1, -2) @ rows
        return gq, gk, gv, None


def _blocks(length: int, window: int) -> Iterator[tuple[int, int, int, int]]:
    """First and last row of each block of queries, and of the keys that are looked at for it."""
    for start in range(0, length, QUERIES):
        end = min(length, start + QUERIES)
        first = max(0, start - window + 1) if window else 0
        last = end if window or length <= KEPT else min(length, -(-end // STRIDE) * STRIDE)
        yield start, end, first // ALIGNED * ALIGNED, last


def _weights(rows: Tensor, keys: Tensor, heads: int, past: int, window: int) -> Tensor:
    """Softmax of what queries (B, G, heads · rows, D) have in common with keys (B, G, S, D)."""
    B, G, N, _ = rows.shape
    scores = (rows @ keys.transpose(-1, -2)).view(B, G, heads, N // heads, -1)
    _hide(scores, past, window)
    return scores.softmax(-1).view(B, G, N, -1)


def _hide(scores: Tensor, past: int, window: int) -> None:
    """Mask what rows must not see: later keys, and with a window those too long ago."""
    rows, width = scores.shape[-2:]
    above = torch.ones(rows, width - past, dtype=torch.bool, device=scores.device).triu(1)
    scores[..., past:].masked_fill_(above, -torch.inf)
    if window and (old := past + rows - window) > 0:
        long_ago = torch.ones(rows, old, dtype=torch.bool, device=scores.device)
        scores[..., :old].masked_fill_(long_ago.tril(past - window), -torch.inf)


class _GatedUnit(torch.autograd.Function):
    """silu(gate) · up of x (…, 2 F) = gate beside up (arXiv:2002.05202)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        (g,) = upstream
        gate, up = x.chunk(2, dim=-1)
        slope = torch.empty_like(x)
        torch.mul(F.silu(gate), g, out=slope[..., gate.shape[-1] :])
        slope[..., : gate.shape[-1]] = torch.ops.aten.silu_backward(g * up, gate)
        return slope


class _SquaredRelu(torch.autograd.Function):
    """relu(x)² (arXiv:2109.08668)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return torch.addcmul(positive.new_zeros(()), upstream[0], positive, value=2)


class _CrossEntropy(torch.autograd.Function):
    """Nats of each target, with the gradients of hidden states (N, C) and head (V, C).

    Both gradients are made in the forward pass, while the logits of a block of rows exist. The
    softmax is rounded to the logits' format: a relative error of 2⁻⁹ in a probability.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 — torch passes them so
        ctx: Any, hidden: Tensor, table: Tensor, head: Tensor, targets: Tensor, cap: float
    ) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        to_hidden = torch.empty_like(hidden)
        to_table = torch.zeros(table.shape, dtype=torch.float32, device=table.device)
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            logits = F.linear(hidden[rows], head)
            bent = logits.div_(cap).tanh_() if cap else None
            slope = torch.softmax(logits if bent is None else bent * cap, -1)
            index = targets[rows, None]
            found = slope.gather(-1, index)
            losses[rows] = -found.float().clamp_min(1e-38).log().squeeze(-1)
            slope.scatter_(-1, index, found - 1)
            if bent is not None:
                slope.mul_(1 - bent * bent)
            to_hidden[rows] = slope @ head
            if slope.dtype == to_table.dtype:
                to_table.addmm_(slope.T, hidden[rows])
            else:
                to_table += slope.T @ hidden[rows]
        ctx.save_for_backward(to_hidden, to_table)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        to_hidden, to_table = ctx.saved_tensors
        (g,) = upstream
        return to_hidden * g.to(to_hidden.dtype), to_table * g, None, None, None


def norm(x: Tensor, eps: float) -> Tensor:
    """(…, C) → (…, C), each row with mean square 1."""
    return _Norm.apply(x, eps)  # pyright: ignore[reportReturnType]


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (B, T, H, D) at angles (B or 1, T, D/2) → (B, H, T, D)."""
    return _Rotation.apply(x, cos, sin)  # pyright: ignore[reportReturnType]


def attention(q: Tensor, k: Tensor, v: Tensor, window: int = 0) -> Tensor:
    """Causal softmax(q kᵀ) v of q (B, H, T, D), scaled already, and k, v (B, G, T, D).

    With a `window` each token sees so many, its own among them.
    """
    B, H, T, D = q.shape
    G = k.shape[1]
    if q.device.type != "cpu" and (not window or T <= KEPT):
        return _fused(q, k, v, window)
    y = _Attention.apply(q.view(B, G, H // G, T, D), k, v, window)
    return y.view(B, H, T, D)  # pyright: ignore[reportOptionalMemberAccess]


def _fused(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The same by the kernels that torch has for GPUs; a window takes T² flags."""
    T = q.shape[2]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    mask = sight(T, T, window, q.device) if 0 < window < T else None
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=1.0
    )


def gated_unit(x: Tensor) -> Tensor:
    """(…, 2 F) → (…, F)."""
    return _GatedUnit.apply(x)  # pyright: ignore[reportReturnType]


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)², of any shape."""
    return _SquaredRelu.apply(x)  # pyright: ignore[reportReturnType]


def cross_entropy(
    hidden: Tensor, table: Tensor, head: Tensor, targets: Tensor, *, cap: float = 0.0
) -> Tensor:
    """Sum of nats over targets (N,) of hidden (N, C) through head (V, C); logits bent at `cap`.

    `head` is `table` in the format that is computed in; the gradient goes to `table` (float32).
    `cap` 0 leaves logits as they are; else they are cap · tanh(logits / cap) (arXiv:2408.00118).
    """
    return _CrossEntropy.apply(hidden, table, head, targets, cap)  # pyright: ignore[reportReturnType]
