"""What an MLP applies to its hidden units."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from soma_agents.language.architecture import Activation


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)² (arXiv:2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu2": squared_relu,
}
