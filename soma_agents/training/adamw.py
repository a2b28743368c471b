"""AdamW (arXiv:1711.05101) by torch's own function.

Its class would import torch's compiler first: seconds of every process that trains.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw

BETAS = (0.9, 0.99)
EPSILON = 1e-8


class AdamW:
    """Steps of named parameters, without weight decay."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        self._means = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._steps = [torch.tensor(0.0) for _ in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter, each of which must have a gradient, against it by about `rate`."""
        adamw(
            list(self._parameters.values()),
            [p.grad for p in self._parameters.values() if p.grad is not None],
            list(self._means.values()),
            list(self._squares.values()),
            [],
            self._steps,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of each parameter: means and squares of its gradients."""
        means = {f"mean/{name}": tensor for name, tensor in self._means.items()}
        return means | {f"square/{name}": tensor for name, tensor in self._squares.items()}

    def load(self, tensors: Mapping[str, Tensor], *, steps: int) -> None:
        """Go on from a state that was kept after so many steps."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])
        for step in self._steps:
            step.fill_(steps)
