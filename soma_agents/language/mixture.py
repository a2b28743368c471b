"""A mixture of experts in the place of an MLP: a router sends each token to a few of them.

As in Mixtral (arXiv:2401.04088): the weights of the chosen experts sum to one. The experts' matrices
lie above each other, so that they are stored and quantised like all others.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from soma_agents.language.activations import ACTIVATIONS
from soma_agents.language.architecture import TransformerConfig


class Mixture(nn.Module):
    """(…, C) → (…, C)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        C, width = config.d_model, config.d_ff
        self.experts = config.experts
        self.chosen = config.experts_per_token
        self.gated = config.gated
        self.activate = ACTIVATIONS[config.activation]
        self.router = nn.Linear(C, config.experts, bias=False)
        self.expand = nn.Linear(C, config.experts * config.site_shape("gate_up")[0], bias=False)
        """Of each expert gate, if there is one, then up."""
        self.contract = nn.Linear(width, config.experts * C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """What the chosen experts of each token say, weighted."""
        tokens = x.reshape(-1, x.shape[-1])
        shares, experts = self.router(tokens).float().softmax(-1).topk(self.chosen, dim=-1)
        shares = (shares / shares.sum(-1, keepdim=True)).to(x.dtype)
        y = torch.zeros_like(tokens)
        pairs = zip(
            self.expand.weight.chunk(self.experts),
            self.contract.weight.chunk(self.experts),
            strict=True,
        )
        for expert, (expand, contract) in enumerate(pairs):
            rows, places = (experts == expert).nonzero(as_tuple=True)
            if len(rows):
                said = F.linear(self._activated(F.linear(tokens[rows], expand)), contract)
                y = y.index_add(0, rows, said * shares[rows, places, None])
        return y.view(x.shape)

    def _activated(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.activate(x)
        gate, up = x.chunk(2, dim=-1)
        return self.activate(gate) * up
