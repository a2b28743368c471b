"""Muon for the matrices of the blocks, AdamW for everything else.

Of several workers each keeps the state of some parameters, takes their steps and gives them to
the others: the optimiser's memory is parted as in ZeRO's first stage (arXiv:1910.02054), by whole
parameters, since Muon needs a matrix whole. Where parameters are parted by rows (`sharding`), each
keeps the state of its rows.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from soma_agents.pretraining.learner import MATRICES, Learner
from soma_agents.pretraining.muon import Muon
from soma_agents.pretraining.recipe import Recipe
from soma_agents.pretraining.sharding import ShardedMuon
from soma_agents.training.adamw import AdamW
from soma_agents.training.group import Workers
from soma_agents.training.schedules import share

BETAS = (0.8, 0.95)
"""As nanochat sets them: a short memory suits a table of which each step sees a part."""


class Optimiser(Protocol):
    """Steps of some parameters, and a state that can be kept."""

    def step(self, rate: float) -> None:
        """One step of each."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What it must keep to go on, by name."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, of other parameters too."""
        ...


def owners(sizes: Sequence[int], workers: int) -> list[int]:
    """Which worker owns which parameter: the largest first, each to who has least."""
    loads, found = [0] * workers, [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        found[place] = loads.index(min(loads))
        loads[found[place]] += sizes[place]
    return found


class Optimisers:
    """Both as one: the rates of a recipe, and a state that can be kept in a file."""

    def __init__(self, learner: Learner, recipe: Recipe, workers: Workers) -> None:
        self._workers = workers
        held = learner.held()
        self._parameters = list(held.values())
        self._owners = [workers.rank] * len(held)
        if not learner.sharded:
            self._owners = owners([p.numel() for p in self._parameters], workers.count)
        named = {
            name: parameter
            for (name, parameter), owner in zip(held.items(), self._owners, strict=True)
            if owner == workers.rank
        }
        matrices = {n: p for n, p in named.items() if n.startswith(MATRICES)}
        others = {n: p for n, p in named.items() if n not in matrices}
        self._recipe = recipe
        self._sharded = learner.sharded
        self._all: list[tuple[Optimiser, float]] = []
        if matrices:
            self._all.append((self._muon(matrices, learner), recipe.matrix_rate))
        if others:
            adam = AdamW(others, betas=BETAS, epsilon=1e-10)
            self._all.append((adam, recipe.embedding_rate))

    def _muon(self, matrices: Mapping[str, nn.Parameter], learner: Learner) -> Optimiser:
        momentum, decay = self._recipe.momentum, self._recipe.decay
        # float16 has not the range for it.
        dtype = torch.float32 if self._recipe.format == "float32" else torch.bfloat16
        if not self._sharded:
            return Muon(matrices, momentum=momentum, decay=decay, dtype=dtype)
        shapes = {name: parameter.shape for name, parameter in learner.named().items()}
        # Those that are stepped together are of like size.
        order = sorted(matrices, key=lambda name: shapes[name].numel())
        parts = {name: matrices[name] for name in order}
        lengths = {name: shapes[name][0] for name in order}
        return ShardedMuon(
            parts, lengths, self._workers, momentum=momentum, decay=decay, dtype=dtype
        )

    def clip(self, scale: float) -> float:
        """Scale the gradients down and clip them; their norm in between."""
        slopes = [p.grad for p in self._parameters if p.grad is not None]
        if scale != 1:
            for slope in slopes:
                slope.div_(scale)
        norm = torch.nn.utils.get_total_norm(slopes)
        if self._sharded:
            squares = norm.square()
            self._workers.sum([squares])
            norm = squares.sqrt()
        torch.nn.utils.clip_grads_with_norm_(self._parameters, self._recipe.clip, norm)
        return float(norm)

    def step(self, step: int) -> float:
        """Take optimiser step `step` (from 0); the share of the peak rates that it took."""
        recipe = self._recipe
        part = share(
            recipe.schedule,
            step,
            steps=recipe.steps,
            warm_up=recipe.warm_up,
            floor=recipe.floor,
            cool_down=recipe.cool_down,
        )
        for optimiser, peak in self._all:
            optimiser.step(peak * part)
        if not self._sharded:
            self._workers.share(self._parameters, self._owners)
        return part

    def state(self) -> dict[str, Tensor]:
        """What this worker must keep to go on, by name."""
        return {n: t for optimiser, _ in self._all for n, t in optimiser.state().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, of any number of workers together."""
        for optimiser, _ in self._all:
            optimiser.load(tensors)
