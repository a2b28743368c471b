"""A learner whose parameters, gradients and optimiser state are parted among workers, by rows.

torch's FSDP2 (`fully_shard`, arXiv:2304.11277) gathers a block's rows when it is to compute, drops
them behind it and adds up gradients to the worker whose rows they are of. What lies between two
steps, here, is plain tensors: the rows that a worker holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from soma_agents.pretraining.muon import Momentum, orthogonal
from soma_agents.training.group import Workers


def shard(
    learner: nn.Module,
    blocks: Sequence[nn.Module],
    dtype: torch.dtype,
    workers: int,
    device: torch.device,
) -> None:
    """Part a learner without memory of its own, which gets room for this worker's rows on its device.

    Blocks compute in `dtype`, all else in float32; gradients are added up in float32.
    """
    # It takes as long to import as torch itself: only who shards waits for it.
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (workers,))
    short = fsdp.MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in blocks:
        fsdp.fully_shard(block, mesh=mesh, mp_policy=short)
    # What is not resharded after a pass without a way back would be computed with again, as it was.
    fsdp.fully_shard(learner, mesh=mesh, reshard_after_forward=True)
    for module in (learner, *blocks):
        assert isinstance(module, fsdp.FSDPModule)  # noqa: S101 — `fully_shard` made it one
        module.set_gradient_divide_factor(1.0)  # a sum, as of the other workers
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    for method in ("loss", "nats"):
        fsdp.register_fsdp_forward_method(learner, method)
    learner.to_empty(device=device)


def rows(length: int, rank: int, workers: int) -> slice:
    """Which of a tensor's rows a worker holds: as many as the others, the last ones fewer or none."""
    size = -(-length // workers)
    return slice(min(length, rank * size), min(length, (rank + 1) * size))


def held(tensor: Tensor) -> Tensor:
    """What this worker holds of a tensor: its rows of a parted one, the whole of another."""
    return tensor.to_local() if _parted(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def whole(tensor: Tensor) -> Tensor:
    """All rows; of a parted tensor every worker must ask for them together."""
    tensor = tensor.detach()
    return tensor.full_tensor() if _parted(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def _parted(tensor: Tensor) -> bool:
    """Whether it is a `DTensor`, without importing what that is."""
    return hasattr(tensor, "to_local")


@torch.no_grad()
def put(parameter: Tensor, value: Tensor) -> None:
    """Set what this worker holds of a parameter to its rows of a whole `value`."""
    if _parted(parameter):
        mesh: Any = parameter.device_mesh  # pyright: ignore[reportAttributeAccessIssue]
        value = value[rows(len(value), mesh.get_local_rank(), mesh.size())]
    held(parameter).copy_(value)


class ShardedMuon(Momentum):
    """Muon for matrices of which each worker holds rows.

    Momentum stays where the rows are. A step wants a matrix whole: each worker is sent one at a
    time, orthogonalises it and gives every other its rows of the step.
    """

    def __init__(
        self,
        parts: Mapping[str, Tensor],
        lengths: Mapping[str, int],
        workers: Workers,
        *,
        momentum: float,
        decay: float,
        dtype: torch.dtype,
    ) -> None:
        """`parts` are what this worker holds of each matrix, `lengths` the rows of the whole."""
        super().__init__(parts, momentum=momentum, decay=decay, dtype=dtype)
        self._lengths = lengths
        self._workers = workers

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step of every matrix, of as many at a time as there are workers."""
        names, together = list(self._parts), self._workers.count
        for start in range(0, len(names), together):
            self._step_together(names[start : start + together], rate)

    def _step_together(self, names: Sequence[str], rate: float) -> None:
        """One of the matrices for each worker, or none for the last ones."""
        rank, count = self._workers.rank, self._workers.count
        momenta = [self._moved(name) for name in names]
        there = [part.numel() for part in momenta] + [0] * (count - len(names))
        here = [0] * count
        if rank < len(names):
            width, length = momenta[rank].shape[1], self._lengths[names[rank]]
            shares = [rows(length, worker, count) for worker in range(count)]
            here = [(share.stop - share.start) * width for share in shares]
        matrix = _exchanged(torch.cat([part.flatten() for part in momenta]), there, here)
        if rank < len(names):
            complete = matrix.view(-1, momenta[rank].shape[1])
            matrix = orthogonal(complete, self._dtype).float()
        steps = _exchanged(matrix.flatten(), here, there).split(there)
        for name, step in zip(names, steps, strict=False):
            self._step(name, self._lengths[name], step.view_as(self._parts[name]), rate)


def _exchanged(sent: Tensor, there: list[int], here: list[int]) -> Tensor:
    """What the workers send each other: `there` numbers to each, `here` from each."""
    received = sent.new_empty(sum(here))
    torch.distributed.all_to_all_single(received, sent, here, there)
    return received
