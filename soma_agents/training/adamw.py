"""AdamW (arXiv:1711.05101) by torch's own function.

Its class would import torch's compiler first: seconds of every process that trains.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class AdamW:
    """Steps of named parameters, without weight decay."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        epsilon: float = 1e-8,
    ) -> None:
        self._parameters = parameters
        self._betas = betas
        self._epsilon = epsilon
        self._means = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._steps = {name: torch.zeros((), device=p.device) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter that has a gradient against it by about `rate`."""
        slopes = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        adamw(
            [self._parameters[name] for name in slopes],
            list(slopes.values()),
            [self._means[name] for name in slopes],
            [self._squares[name] for name in slopes],
            [],
            [self._steps[name] for name in slopes],
            fused=True,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=rate,
            weight_decay=0.0,
            eps=self._epsilon,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of each parameter, in the words of torch's class."""
        kept = {"exp_avg": self._means, "exp_avg_sq": self._squares, "step": self._steps}
        return {
            f"{name}/{key}": tensor for key, own in kept.items() for name, tensor in own.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, other tensors beside it or not."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])
