"""The same loop under Ray Train: one worker or several, which share each step's micro-batches.

`python -m soma_agents.training.ray_train REQUEST.json` is a driver of its own: ending it ends its
controller and workers, whatever state they are in. One worker is the driver itself, Ray Train's
local mode: a worker group for one costs six processes and a minute of a two-core machine. Of
several, Ray restarts those that die; our own checkpoints in the run's directory say where to go
on, since a checkpoint reported to Ray costs seconds each.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from arbiters.errors import SomaError
from soma_agents.language.apart import NICENESS, keep_to, settle
from soma_agents.training.device import CPU, best_device
from soma_agents.training.group import GroupWorkers
from soma_agents.training.job import alone, carry_out, train_here
from soma_agents.training.request import Job, read_result

MAX_FAILURES = 3
"""Deaths of workers that Ray makes good."""

CPU_SHARE = 0.1
"""CPUs that a worker books: it is confined to the trainer's cores, whatever else is booked."""


def train_with_ray(job: Job) -> None:
    """Run the loop on `training.workers` workers; the first one leaves the result."""
    threads = str(max(1, len(job.cores)))
    workers = job.settings.training.workers
    gpus = workers > 1 and gpus_for(workers)
    trainer = ray.train.torch.TorchTrainer(
        work,
        train_loop_config={"job": job.model_dump_json(), "gpus": gpus},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers if workers > 1 else 0,
            use_gpu=gpus,
            resources_per_worker={"CPU": CPU_SHARE},
        ),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpus else "gloo"),
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
    count = context.get_world_size()
    device = best_device() if count == 1 else device_of_worker(gpus=config["gpus"])
    workers = GroupWorkers(context.get_world_rank(), count, device)
    if workers.rank == 0:
        carry_out(job, lambda job: train_here(job, workers, device))
        return
    # What is a reason to give up is one for all of them, and the first one tells it.
    with suppress(SomaError):
        train_here(job, workers, device)


def gpus_for(workers: int) -> bool:
    """Whether Ray has a GPU free for each of so many workers; else all of them use the CPU."""
    return ray.available_resources().get("GPU", 0) >= workers


def device_of_worker(*, gpus: bool) -> torch.device:
    """What this worker of Ray Train computes on; Ray shows GPUs also to those that have none."""
    if not gpus:
        return CPU
    device = ray.train.torch.get_device()
    torch.cuda.set_device(device)  # nccl and FSDP2 take the current one
    return device


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
