"""The same loop under Ray Train: one worker or several, which share each step's micro-batches.

`python -m soma_agents.training.ray_train REQUEST.json` is a driver of its own: ending it ends its
controller and workers, whatever state they are in. One worker is the driver itself, Ray Train's
local mode: a worker group for one costs six processes and a minute of a two-core machine. Of
several, Ray restarts those that die; our own checkpoints in the run's directory say where to go
on, since a checkpoint reported to Ray costs seconds each.
"""

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor

from arbiters.errors import SomaError
from soma_agents.language.apart import NICENESS, keep_to, settle
from soma_agents.training.job import alone, carry_out, train_here
from soma_agents.training.request import Job, read_result

MAX_FAILURES = 3
"""Deaths of workers that Ray makes good."""

CPU_SHARE = 0.1
"""CPUs that a worker books: it is confined to the trainer's cores, whatever else is booked."""


class GlooWorkers:
    """The workers of a Ray Train run, as one of them sees them."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank = rank
        self.count = count

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up over all workers in one message: a call for each tensor would cost more."""
        if self.count == 1:
            return
        with _together(tensors) as flat:
            torch.distributed.all_reduce(flat)

    def share(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """One message from each owner."""
        for owner in sorted(set(owners)):
            own = [tensor for tensor, its in zip(tensors, owners, strict=True) if its == owner]
            with _together(own) as flat:
                torch.distributed.broadcast(flat, src=owner)


@contextmanager
def _together(tensors: Sequence[Tensor]) -> Generator[Tensor]:
    """One flat tensor of them all, float32, which they are set to at the end."""
    flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
    yield flat
    parts = flat.split([tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def train_with_ray(job: Job) -> None:
    """Run the loop on `training.workers` workers; the first one leaves the result."""
    threads = str(max(1, len(job.cores)))
    workers = job.settings.training.workers
    trainer = ray.train.torch.TorchTrainer(
        work,
        train_loop_config={"job": job.model_dump_json()},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers if workers > 1 else 0,
            resources_per_worker={"CPU": CPU_SHARE},
        ),
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            name=job.request.round,
            storage_path=str(job.directory / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            worker_runtime_env={
                "env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": threads}
            },
        ),
    )
    trainer.fit()


def work(config: dict[str, Any]) -> None:
    """What each worker does, at low priority and on the trainer's cores."""
    job = Job.model_validate_json(config["job"])
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    keep_to(job.cores)
    context = ray.train.get_context()
    workers = GlooWorkers(context.get_world_rank(), context.get_world_size())
    if workers.rank == 0:
        carry_out(job, lambda job: train_here(job, workers))
        return
    # What is a reason to give up is one for all of them, and the first one tells it.
    with suppress(SomaError):
        train_here(job, workers)


def main(arguments: list[str]) -> None:
    """Carry out the request in the file that the first argument names."""
    job = Job.model_validate_json(Path(arguments[0]).read_bytes())
    settle(job.cores)
    with alone(job.directory):
        if read_result(job.directory) is None:
            if job.settings.training.workers > 1:
                ray.init(log_to_driver=False)
            train_with_ray(job)


if __name__ == "__main__":
    # Under its real name, so that workers find `work` by import.
    from soma_agents.training import ray_train  # noqa: PLW0406 — not the module that runs: `__main__`

    ray_train.main(sys.argv[1:])
