"""Muon for the matrices of the blocks, AdamW for everything else, both torch's own."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from soma_agents.pretraining.learner import MATRICES, Learner
from soma_agents.pretraining.recipe import Recipe
from soma_agents.training.schedules import share

NEWTON_SCHULZ = 5
"""Iterations that orthogonalise a gradient."""

BETAS = (0.8, 0.95)
"""As nanochat sets them: a short memory suits a table of which each step sees a part."""


class Optimisers:
    """Both as one: the rates of a recipe, and a state that can be kept in a file."""

    def __init__(self, learner: Learner, recipe: Recipe) -> None:
        named = dict(learner.named_parameters())
        matrices = {n: p for n, p in named.items() if n.startswith(MATRICES)}
        others = {n: p for n, p in named.items() if n not in matrices}
        self._recipe = recipe
        self._names: dict[Tensor, str] = {p: name for name, p in named.items()}
        self._all: list[tuple[Optimizer, float]] = [
            (
                torch.optim.Muon(
                    matrices.values(),
                    lr=recipe.matrix_rate,
                    momentum=recipe.momentum,
                    ns_steps=NEWTON_SCHULZ,
                    weight_decay=recipe.decay,
                ),
                recipe.matrix_rate,
            ),
            (
                torch.optim.AdamW(
                    others.values(),
                    lr=recipe.embedding_rate,
                    betas=BETAS,
                    eps=1e-10,
                    weight_decay=0.0,
                    fused=True,
                ),
                recipe.embedding_rate,
            ),
        ]

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
            for group in optimiser.param_groups:
                group["lr"] = peak * part
            optimiser.step()
        return part

    def state(self) -> dict[str, Tensor]:
        """What must be kept to go on, by name."""
        return {
            f"{self._names[parameter]}/{key}": value
            for parameter, state in self._states()
            for key, value in state.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for optimiser, _ in self._all:
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    stem = self._names[parameter] + "/"
                    optimiser.state[parameter] = {
                        name.removeprefix(stem): tensor.clone()
                        for name, tensor in tensors.items()
                        if name.startswith(stem)
                    }

    def _states(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        for optimiser, _ in self._all:
            yield from optimiser.state.items()
