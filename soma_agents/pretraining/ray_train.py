"""The same loop on several workers of Ray Train, each of which learns from its share of the rows.

Data-parallel: every worker has the whole model, gradients are added up over gloo. The first one
leaves checkpoints, curve and model in the run's folder, which all of them must see.
"""

import json
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch

from soma_agents.pretraining.recipe import Recipe
from soma_agents.pretraining.run import MODEL, Hooks, Sources, learn, prepare
from soma_agents.training.ray_train import MAX_FAILURES, GlooWorkers

CPU_SHARE = 0.1
"""CPUs that a worker books; its threads are set by OMP_NUM_THREADS."""


def pretrain_with_ray(
    sources: Sources, recipe: Recipe, directory: Path, *, workers: int, threads: int = 1
) -> Path:
    """Learn on `workers` workers with so many threads each; the model's file.

    A worker that dies is started again with the others, and they go on from the newest checkpoint.

    Raises:
        InvalidError: the corpus, vocabulary and recipe do not fit each other.
    """
    prepare(sources, recipe, directory, Hooks())
    places = [sources.corpus, sources.held_out, sources.tokenizer, sources.base]
    config = {
        "sources": [None if place is None else str(place.absolute()) for place in places],
        "system": sources.system,
        "recipe": json.dumps(recipe.facts()),
        "directory": str(directory),
    }
    trainer = ray.train.torch.TorchTrainer(
        work,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, resources_per_worker={"CPU": CPU_SHARE}
        ),
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            name="pretraining",
            storage_path=str(directory / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            worker_runtime_env={
                "env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
            },
        ),
    )
    trainer.fit()
    return directory / MODEL


def work(config: dict[str, Any]) -> None:
    """What each worker does."""
    corpus, held_out, tokenizer, base = (None if p is None else Path(p) for p in config["sources"])
    assert corpus is not None  # noqa: S101 — a run has a corpus
    context = ray.train.get_context()
    learn(
        Sources(corpus, held_out, tokenizer, base, config["system"]),
        Recipe.of(json.loads(config["recipe"])),
        Path(config["directory"]),
        hooks=Hooks(),
        workers=GlooWorkers(context.get_world_rank(), context.get_world_size()),
    )
