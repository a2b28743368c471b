"""What can be learnt beside the next token, each through a small head that no export has."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from soma_agents.pretraining.kernels import cross_entropy
from soma_agents.pretraining.recipe import Recipe
from soma_agents.pretraining.structure import CLASSES, DISTANCES, Traits, sentence_distances

WEIGHT = 0.1
"""Of each objective's nats against those of the next token."""
EVERY = 8
"""Coherence looks at each so many-th token: its head is as large as the model's own."""
AHEAD = 32
"""Tokens ahead that coherence reaches at most."""


class Objectives(nn.Module):
    """Sum of nats of the objectives that a recipe names.

    structure: of which kind the next token is. hierarchy: how far the sentence's end is.
    coherence: which token stands somewhere in the next 32, through the model's own head.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self._names = recipe.objectives
        width = recipe.model.d_model
        for name, outputs in (
            ("structure", CLASSES),
            ("hierarchy", DISTANCES),
            ("coherence", width),
        ):
            if name in recipe.objectives:
                self.register_parameter(name, nn.Parameter(torch.zeros(outputs, width)))

    def forward(
        self, hidden: Tensor, tokens: Tensor, table: Tensor, head: Tensor, traits: Traits
    ) -> Tensor:
        """Weighted nats of hidden (B, T, C), made of tokens (B, T + 1) but the last of each row."""
        total = hidden.new_zeros((), dtype=torch.float32)
        if "structure" in self._names:
            total = total + self._classified("structure", hidden, traits.kinds[tokens[:, 1:]])
        if "hierarchy" in self._names:
            distances = sentence_distances(tokens[:, 1:], traits)
            total = total + self._classified("hierarchy", hidden, distances)
        if "coherence" in self._names:
            total = total + self._ahead(hidden, tokens, table, head)
        return WEIGHT * total

    def _classified(self, name: str, hidden: Tensor, targets: Tensor) -> Tensor:
        weight = self.get_parameter(name).to(hidden.dtype)
        logits = F.linear(hidden, weight).float().flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), reduction="sum")

    def _ahead(self, hidden: Tensor, tokens: Tensor, table: Tensor, head: Tensor) -> Tensor:
        width = hidden.shape[1]
        here = torch.arange(0, max(1, width - AHEAD), EVERY, device=tokens.device)
        there = (here + 2 + here * 7919 % (AHEAD - 1)).clamp(max=width)
        mapped = F.linear(hidden[:, here], self.get_parameter("coherence").to(hidden.dtype))
        flat = mapped.reshape(-1, mapped.shape[-1])
        return EVERY * cross_entropy(flat, table, head, tokens[:, there].reshape(-1))
