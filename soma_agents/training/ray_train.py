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

from arbiters.errors import SomaError
from soma_agents.language.apart import NICENESS, keep_to, settle
from soma_agents.training.gloo import GlooWorkers
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
