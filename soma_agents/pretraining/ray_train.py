"""The same loop on several workers of Ray Train, each of which learns from its share of the rows.

Data-parallel: every worker has the whole model, gradients are added up over gloo (nccl between GPUs); each has the
optimiser's state of its part of the parameters, and its part of the checkpoints. Sharded, each has
its rows of the parameters, too, and no more. The first one leaves curve and model in the run's folder, which all of them must see.
"""

import json
import math
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from arbiters.errors import SomaError
from soma_agents.pretraining.loop import STOP, Progress
from soma_agents.pretraining.recipe import Recipe
from soma_agents.pretraining.run import METRICS, MODEL, Hooks, Sources, learn, prepare, settled
from soma_agents.training.device import CPU
from soma_agents.training.group import GroupWorkers
from soma_agents.training.ray_train import MAX_FAILURES, device_of_worker, gpus_for

LOOK_EVERY_S = 0.5
GAVE_UP = "gave-up.txt"
"""Why the workers stopped, where it is nothing that another try could mend."""
CPU_SHARE = 0.1
"""CPUs that a worker books; its threads are set by OMP_NUM_THREADS."""


def pretrain_with_ray(
    sources: Sources,
    recipe: Recipe,
    directory: Path,
    *,
    workers: int,
    sharded: bool = False,
    threads: int = 1,
    hooks: Hooks | None = None,
    max_seconds: float = math.inf,
) -> Path:
    """Learn on `workers` workers with so many threads each, on GPUs if Ray has one for each; the model's file.

    A worker that dies is started again with the others, and they go on from the newest checkpoint.
    Ctrl-C waits until they have written one.

    Raises:
        InvalidError: the corpus, vocabulary and recipe do not fit each other.
        SomaError: the workers gave up, for the reason that it tells.
    """
    hooks = hooks or Hooks()
    gpus = gpus_for(workers)
    recipe = settled(recipe, directory, torch.device("cuda") if gpus else CPU)
    prepare(sources, recipe, directory, hooks)
    hooks.on_phase("learning")
    places = [sources.corpus, sources.held_out, sources.tokenizer, sources.base]
    config = {
        "sources": [None if place is None else str(place.absolute()) for place in places],
        "system": sources.system,
        "recipe": json.dumps(recipe.facts()),
        "directory": str(directory),
        "max_seconds": max_seconds,
        "sharded": sharded,
        "gpus": gpus,
    }
    trainer = ray.train.torch.TorchTrainer(
        work,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": CPU_SHARE}
        ),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=ray.train.RunConfig(
            name="pretraining",
            storage_path=str(directory / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            worker_runtime_env={
                "env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
            },
        ),
    )
    gave_up = directory / GAVE_UP
    gave_up.unlink(missing_ok=True)
    with _followed(directory / METRICS, hooks):
        _fit(trainer, directory / STOP)
    if gave_up.exists():
        raise SomaError(gave_up.read_text())
    return directory / MODEL


def _fit(trainer: ray.train.torch.TorchTrainer, stop: Path) -> None:
    """See it through, in a thread: in the main one Ray would kill the workers at a Ctrl-C."""
    with ThreadPoolExecutor(1) as pool:
        fitted = pool.submit(trainer.fit)
        try:
            fitted.result()
        except KeyboardInterrupt:
            stop.touch()
            fitted.result()
            raise
        finally:
            stop.unlink(missing_ok=True)


@contextmanager
def _followed(curve: Path, hooks: Hooks) -> Generator[None]:
    """Tell each step that the first worker adds to the live curve."""
    ended = threading.Event()
    read = curve.stat().st_size if curve.exists() else 0

    def follow() -> None:
        place = read
        while not ended.wait(LOOK_EVERY_S):
            if not curve.exists():
                continue
            if curve.stat().st_size < place:  # what is taken again was cut
                place = 0
            with curve.open("rb") as file:
                file.seek(place)
                lines = file.read().rpartition(b"\n")[0]
            place += len(lines) + 1 if lines else 0
            for line in lines.splitlines():
                hooks.on_progress(Progress(**json.loads(line)))

    follower = threading.Thread(target=follow, name="curve", daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()


def work(config: dict[str, Any]) -> None:
    """What each worker does."""
    corpus, held_out, tokenizer, base = (None if p is None else Path(p) for p in config["sources"])
    assert corpus is not None  # noqa: S101 — a run has a corpus
    context = ray.train.get_context()
    device = device_of_worker(gpus=config["gpus"])
    workers = GroupWorkers(context.get_world_rank(), context.get_world_size(), device)
    directory = Path(config["directory"])
    try:
        learn(
            Sources(corpus, held_out, tokenizer, base, config["system"]),
            Recipe.of(json.loads(config["recipe"])),
            directory,
            hooks=Hooks(),
            max_seconds=config["max_seconds"],
            workers=workers,
            sharded=config["sharded"],
            device=device,
        )
    except KeyboardInterrupt:  # who stopped the workers knows
        return
    except SomaError as error:  # all of them find the same; to try again would not help
        if workers.rank == 0:
            (directory / GAVE_UP).write_text(str(error))
