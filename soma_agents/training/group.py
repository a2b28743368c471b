"""Workers of a run: one alone, or several that talk over torch's process group."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed
from torch import Tensor

from soma_agents.training.device import CPU


class Workers(Protocol):
    """The processes of a parallel run as one of them sees them."""

    rank: int
    count: int

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all workers."""
        ...

    def share(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """Replace each tensor, in place, by what the worker of that rank has."""
        ...


class Alone:
    """A run of one process."""

    rank = 0
    count = 1

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to add."""

    def share(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """Nothing to take."""


class GroupWorkers:
    """The workers of a process group, as Ray Train sets it up."""

    def __init__(self, rank: int, count: int, device: torch.device = CPU) -> None:
        """`device` is where the group's messages must lie: gloo's on the CPU, nccl's on a GPU."""
        self.rank = rank
        self.count = count
        self._device = device

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up over all workers in one message: a call for each tensor would cost more."""
        if self.count == 1:
            return
        with _together(tensors, self._device) as flat:
            torch.distributed.all_reduce(flat)

    def share(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """One message from each owner."""
        if self.count == 1:
            return
        for owner in sorted(set(owners)):
            own = [tensor for tensor, its in zip(tensors, owners, strict=True) if its == owner]
            with _together(own, self._device) as flat:
                torch.distributed.broadcast(flat, src=owner)


@contextmanager
def _together(tensors: Sequence[Tensor], device: torch.device) -> Generator[Tensor]:
    """One flat tensor of them all, float32, which they are set to at the end."""
    flat = torch.cat([tensor.detach().reshape(-1).float().to(device) for tensor in tensors])
    yield flat
    parts = flat.split([tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
