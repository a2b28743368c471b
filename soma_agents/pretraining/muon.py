"""Muon: momentum whose every step is orthogonal (Keller Jordan, kellerjordan.github.io/posts/muon).

torch's own does the same in bfloat16 alone, which a processor without instructions for it takes
minutes for; the tests hold this one against it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of a Newton-Schulz iteration: x, (x xᵀ) x and (x xᵀ)² x."""
ITERATIONS = 5
"""That orthogonalise a gradient."""
SMALLEST = 1e-7
"""Norm below which a gradient is not scaled up."""
OBLONG = 2
"""Times that a matrix must be longer than it is wide for its iterations to pay among squares."""


class Momentum:
    """Matrices by name, or some rows of each, and the means of their gradients."""

    def __init__(
        self, parts: Mapping[str, Tensor], *, momentum: float, decay: float, dtype: torch.dtype
    ) -> None:
        """A step shrinks a matrix by `decay` times its rate; `dtype` orthogonalises."""
        self._parts = parts
        self._momentum = momentum
        self._decay = decay
        self._dtype = dtype
        self._means = {name: torch.zeros_like(part) for name, part in parts.items()}

    def _moved(self, name: str) -> Tensor:
        """The gradient with Nesterov's momentum."""
        slope = self._parts[name].grad
        assert slope is not None  # noqa: S101 — who asks has looked
        mean = self._means[name].lerp_(slope, 1 - self._momentum)
        return slope.lerp(mean, self._momentum)

    def _step(self, name: str, length: int, update: Tensor, rate: float) -> None:
        """Step of what is here of a matrix of so many rows."""
        part = self._parts[name]
        reach = max(1.0, length / part.shape[1]) ** 0.5  # tall matrices change outputs as others
        part.mul_(1 - rate * self._decay).add_(update, alpha=-rate * reach)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, in the words of torch's class."""
        return {f"{name}/momentum_buffer": mean for name, mean in self._means.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, other tensors beside it or not."""
        for name, mean in self.state().items():
            mean.copy_(tensors[name])


class Muon(Momentum):
    """Steps of whole matrices, in float32."""

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step of every matrix that has a gradient."""
        for name, matrix in self._parts.items():
            if matrix.grad is not None:
                update = orthogonal(self._moved(name), self._dtype)
                self._step(name, len(matrix), update, rate)


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix with all singular values near 1, by Newton-Schulz iterations in `dtype`."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    x = x.T if tall else x  # products of the shorter side are smaller
    x = x / x.norm().clamp(min=SMALLEST)
    x = _among_squares(x) if among_squares(matrix.shape, dtype) else _iterated(x)
    return x.T if tall else x


def among_squares(shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether iterations of a matrix multiply squares of its shorter side only.

    That takes fewer products, and the numbers of float32: what is small is squared.
    """
    short, long = sorted(shape)
    return dtype == torch.float32 and long >= OBLONG * short


def _iterated(x: Tensor) -> Tensor:
    """Make of x again and again a x + b (x xᵀ) x + c (x xᵀ)² x."""
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _among_squares(x: Tensor) -> Tensor:
    """The same: what x is multiplied by commutes with x xᵀ, so x itself can wait until the end."""
    a, b, c = COEFFICIENTS
    gram, factors = x @ x.T, list[Tensor]()
    for _ in range(ITERATIONS):
        if factors:
            gram = factors[-1] @ gram @ factors[-1]
        factors.append(torch.addmm(gram, gram, gram, beta=b, alpha=c))
        factors[-1].diagonal().add_(a)
    return torch.linalg.multi_dot([*factors, x])
