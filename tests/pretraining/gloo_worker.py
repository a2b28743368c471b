"""One of the workers of `test_sharding`: `gloo_worker.py RANK COUNT FOLDER`.

What the workers do together, one thing after another, is what the tests look at; each leaves what
it has found in FOLDER.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from safetensors.torch import save_file

from arbiters.errors import SomaError
from soma_agents.pretraining import loop
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.loop import Progress, fit
from soma_agents.pretraining.packed import Packed
from soma_agents.pretraining.recipe import Recipe
from soma_agents.pretraining.sharding import ShardedMuon, put, rows
from soma_agents.pretraining.structure import plain_traits
from soma_agents.training.group import GroupWorkers
from soma_agents.training.loop import DivergedError

TRAITS = plain_traits([2] * 300)
RATE = 0.02


class Worker:
    """What one of them does."""

    def __init__(self, rank: int, count: int, folder: Path) -> None:
        self.workers = GroupWorkers(rank, count)
        self.folder = folder
        self.slopes: list[list[float]] = []
        self.facts: dict[str, object] = {"slopes": self.slopes}
        cycle = np.tile(np.arange(20, dtype=np.uint16), 200)
        self.packed = Packed(cycle, cycle[:200], "cycle")

    def learn(
        self, name: str, recipe: Recipe, *, sharded: bool = True, until: int = 0
    ) -> Learner | None:
        """A run in the folder `name`, until a step; what has been learnt goes into a file."""
        losses: list[float] = []

        def heard(progress: Progress) -> None:
            losses.append(progress.loss)
            if progress.step == until:
                raise KeyboardInterrupt

        try:
            outcome = fit(
                recipe,
                self.packed,
                TRAITS,
                directory=self.folder / name,
                workers=self.workers,
                sharded=sharded,
                on_progress=heard,
            )
        except KeyboardInterrupt:
            self.workers.sum([torch.zeros(1)])  # all have written what they have
            return None
        weights = {n: w.contiguous().clone() for n, w in outcome.learner.exported()}
        self.facts[name] = {"losses": losses, "bits": outcome.bits_per_byte}
        if self.workers.rank == 0:
            save_file(weights, self.folder / f"{name}.safetensors")
        return outcome.learner

    def hold(self, learner: Learner) -> None:
        """What of a model is in this worker's memory between two steps."""
        parts = [parameter.to_local() for parameter in learner.parameters()]
        self.facts["bytes"] = sum(part.untyped_storage().nbytes() for part in parts)
        self.facts["whole bytes"] = 4 * learner.size

    def run(self, recipe: Recipe, *, sharded: bool = True) -> loop.Run:
        """A run that is awake: as a model begins, most of its gradients are zero."""
        run = loop.Run(
            recipe,
            self.packed,
            TRAITS,
            directory=self.folder / "steps",
            workers=self.workers,
            sharded=sharded,
        )
        generator = torch.Generator().manual_seed(7)
        for parameter in run.learner.named().values():
            put(parameter, 0.1 * torch.randn(parameter.shape, generator=generator))
        return run

    def compare(self, recipe: Recipe) -> None:
        """Loss and gradients of a step, beside those of workers that have the whole model."""
        copied, parted = (self.run(recipe, sharded=kind) for kind in (False, True))
        losses = [float(run._gradients([0, 1, 2, 3, 4])) for run in (copied, parted)]
        apart = [losses[1] / losses[0] - 1]
        for name, whole in copied.learner.held().items():
            mine = whole.grad[self._mine(whole)]
            difference = parted.learner.held()[name].grad - mine
            apart.append(float(difference.norm() / whole.grad.norm().clamp(min=1e-9)))
        norms = [run._optimisers.clip(1.0) for run in (copied, parted)]
        self.slopes.append([*apart, norms[1] / norms[0] - 1])

    def diverge(self, recipe: Recipe) -> None:
        """A run whose weights are broken in one of the workers."""
        run = self.run(recipe)
        with torch.no_grad():
            run.learner.held()["matrices.0-qkv"].fill_(torch.nan if self.workers.rank else 0.0)
        try:
            run.train(lambda _: None)
        except DivergedError as error:
            self.facts["diverged"] = str(error)

    def disagree(self, recipe: Recipe) -> None:
        """A run that only the first worker finds begun."""
        try:
            self.learn("nowhere" if self.workers.rank else "handed on", recipe)
        except SomaError as error:
            self.facts["disagreed"] = str(error)

    def orthogonalise(self) -> None:
        """Some steps of matrices with rows here and there, beside torch's own on whole ones."""
        generator = torch.Generator().manual_seed(3)
        shapes = [(7, 5), (4, 6), (1, 3)]
        wholes = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
        parts = [torch.nn.Parameter(w.detach()[self._mine(w)].clone()) for w in wholes]
        own = torch.optim.Muon(wholes, lr=RATE, momentum=0.95, ns_steps=5, weight_decay=0.1)
        shared = ShardedMuon(
            {str(size): part for size, part in zip(shapes, parts, strict=True)},
            {str(size): size[0] for size in shapes},
            self.workers,
            momentum=0.95,
            decay=0.1,
            dtype=torch.bfloat16,
        )
        for _ in range(3):
            for whole, part in zip(wholes, parts, strict=True):
                whole.grad = torch.randn(whole.shape, generator=generator)
                part.grad = whole.grad[self._mine(whole)].clone()
            own.step()
            shared.step(RATE)
        self.facts["muon"] = [
            (part - whole[self._mine(whole)]).abs().sum().item()
            for part, whole in zip(parts, wholes, strict=True)
        ]

    def _mine(self, whole: torch.Tensor) -> slice:
        return rows(len(whole), self.workers.rank, self.workers.count)


def main(rank: int, count: int, folder: Path) -> None:
    """Everything, in the order in which all workers do it."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    plain, *others = (Recipe.of(f) for f in json.loads((folder / "recipes.json").read_text()))
    worker = Worker(rank, count, folder)
    worker.orthogonalise()
    worker.learn("copied", plain, sharded=False)
    learner = worker.learn("whole", plain)
    assert learner is not None
    worker.hold(learner)
    worker.learn("parts", plain, until=3)
    worker.learn("parts", plain)
    worker.learn("handed on", plain, until=3)
    worker.learn("taken over", plain)
    worker.disagree(plain)
    for recipe in (plain, *others):
        worker.compare(recipe)
    worker.diverge(plain)
    (folder / f"worker-{rank}.json").write_text(json.dumps(worker.facts))
    torch.distributed.destroy_process_group()
    # Threads of torch's that still run when its libraries are taken down abort a process.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
