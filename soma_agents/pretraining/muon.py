"""Muon: momentum whose every step is orthogonal (Keller Jordan, kellerjordan.github.io/posts/muon).

torch's own does the same in bfloat16 alone, which a processor without instructions for it takes
minutes for; the tests hold this one against it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of a Newton-Schulz iteration: x, (x xᵀ) x and (x xᵀ)² x."""
SMALLEST = 1e-7
"""Norm below which a gradient is not scaled up."""
OBLONG = 2
"""Times that a matrix must be longer than it is wide for its iterations to pay among squares."""


class Muon(torch.optim.Optimizer):
    """Steps of whole matrices, in float32 with Nesterov's momentum; `dtype` orthogonalises them."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        ns_steps: int,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(
            matrices,
            {"lr": lr, "momentum": momentum, "ns_steps": ns_steps, "weight_decay": weight_decay},
        )
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of every matrix that has a gradient."""
        del closure
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                update = moved(matrix, self.state[matrix], group["momentum"])
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                update = orthogonal(update, self._dtype, group["ns_steps"])
                matrix.add_(update, alpha=-group["lr"] * reach(matrix))


def moved(part: Tensor, state: dict[str, Any], momentum: float) -> Tensor:
    """The gradient of a matrix, or of some of its rows, with Nesterov's momentum."""
    assert part.grad is not None  # noqa: S101 — who asks has looked
    if not state:
        state["momentum_buffer"] = torch.zeros_like(part)
    mean = state["momentum_buffer"].lerp_(part.grad, 1 - momentum)
    return part.grad.lerp(mean, momentum)


def orthogonal(matrix: Tensor, dtype: torch.dtype, steps: int) -> Tensor:
    """The matrix with all singular values near 1, by Newton-Schulz iterations in `dtype`."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    x = x.T if tall else x  # products of the shorter side are smaller
    x = x / x.norm().clamp(min=SMALLEST)
    x = _among_squares(x, steps) if among_squares(matrix.shape, dtype) else _iterated(x, steps)
    return x.T if tall else x


def among_squares(shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether iterations of a matrix multiply squares of its shorter side only.

    That takes fewer products, and the numbers of float32: what is small is squared.
    """
    short, long = sorted(shape)
    return dtype == torch.float32 and long >= OBLONG * short


def _iterated(x: Tensor, steps: int) -> Tensor:
    """Make of x so many times a x + b (x xᵀ) x + c (x xᵀ)² x."""
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _among_squares(x: Tensor, steps: int) -> Tensor:
    """The same: what x is multiplied by commutes with x xᵀ, so x itself can wait until the end."""
    a, b, c = COEFFICIENTS
    gram, factors = x @ x.T, list[Tensor]()
    for _ in range(steps):
        if factors:
            gram = factors[-1] @ gram @ factors[-1]
        factors.append(torch.addmm(gram, gram, gram, beta=b, alpha=c))
        factors[-1].diagonal().add_(a)
    return torch.linalg.multi_dot([*factors, x])


def reach(matrix: Tensor) -> float:
    """What a step is multiplied by, so that tall matrices change their outputs as much as others."""
    return max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
