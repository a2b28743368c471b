"""SOMA-LM while it learns: float32 masters, a working copy in the format that computes fastest.

The same arithmetic as `language.transformer.Transformer`, which is its oracle, with the kernels
of this package. Norms have no scale of their own while learning: a scale of one goes into the
export. What is SOMA's own (`structure`) can be switched on part by part; docs/log.md tells what
each part was worth.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from arbiters.errors import InvalidError
from soma_agents.language.architecture import TransformerConfig
from soma_agents.language.transformer import Transformer
from soma_agents.pretraining.experts import BALANCE, Expert, mixed
from soma_agents.pretraining.kernels import (
    ROWS,
    attention,
    cross_entropy,
    gated_unit,
    norm,
    rotated,
    squared_relu,
)
from soma_agents.pretraining.objectives import Objectives
from soma_agents.pretraining.recipe import Recipe, matrices_of, mlps
from soma_agents.pretraining.structure import Traits, places

MATRICES = "matrices."
"""Names of the weights that Muon takes begin so."""
WRITING = re.compile("out$|down")
"""Names of those whose products are added to the stream."""

LEVELS = (4, 2, 2)
"""Eighths of the slow half of a head's pairs that turn by words, sentences, paragraphs."""

Turn = tuple[Tensor, Tensor]


class Learner(nn.Module):
    """Parameters of a language model, and its loss."""

    def __init__(self, recipe: Recipe, traits: Traits | None = None) -> None:
        """`traits` of the vocabulary are needed for what is SOMA's own.

        Raises:
            InvalidError: the learner does not know the activation, or lacks the traits.
        """
        super().__init__()
        config = recipe.model
        _require_learnable(config)
        self.config = config
        self.dtype: torch.dtype = getattr(torch, recipe.precision)
        self._recipe = recipe
        self._traits = traits
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        self.matrices = nn.ParameterDict(
            {
                f"{layer}-{name}": nn.Parameter(torch.empty(shape))
                for layer in range(config.layers)
                for name, shape in matrices_of(config).items()
            }
        )
        self.routers = nn.ParameterList(
            nn.Parameter(torch.empty(config.experts, config.d_model))
            for _ in range(config.layers if config.experts else 0)
        )
        if not self.embedding.is_meta:
            self._draw(recipe.seed)
        self.features: nn.Parameter | None = None
        if recipe.features:
            columns = self._known().features.shape[1]
            self.features = nn.Parameter(torch.zeros(columns, config.d_model))
        self.objectives = Objectives(recipe) if recipe.objectives else None
        self._work: dict[str, Tensor] = {}

    def _draw(self, seed: int) -> None:
        """Embeddings from N(0, 0.02²), matrices uniform with variance 1/inputs.

        Those that write to the stream are zero: each block begins as the identity. Routers are
        drawn as the other matrices are.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.embedding.normal_(0, 0.02, generator=generator)
            for name, weight in [*self.matrices.items(), *self.routers.named_parameters()]:
                if WRITING.search(name):
                    weight.zero_()
                else:
                    reach = (3 / weight.shape[1]) ** 0.5
                    weight.uniform_(-reach, reach, generator=generator)

    @property
    def size(self) -> int:
        """Numbers that are learnt."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _known(self) -> Traits:
        if self._traits is None:
            raise InvalidError("features, hierarchy and objectives need the vocabulary's traits")
        return self._traits

    # --- one micro-batch -------------------------------------------------------------------

    def refresh(self) -> None:
        """Take the masters as they are now into the working copy; gradients become zero."""
        for name, master in self.named_parameters():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            else:
                master.grad.zero_()
            if name.startswith(MATRICES):
                self._work[name] = master.detach().to(self.dtype).requires_grad_()

    @torch.no_grad()
    def collect(self) -> None:
        """Add the working copy's gradients to the masters' in float32."""
        for name, master in self.named_parameters():
            leaf = self._work.get(name)
            if leaf is not None and leaf.grad is not None and master.grad is not None:
                master.grad += leaf.grad
                leaf.grad = None

    def loss(self, tokens: Tensor, learnt: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What to descend, and the sum of nats, of tokens (B, T + 1) behind the first of each row.

        With `learnt` (B, T) only where it is true.
        """
        table = self.table()
        head = table.detach().to(self.dtype)
        hidden, imbalance = self._through(tokens[:, :-1], table)
        flat, targets = hidden.reshape(-1, self.config.d_model), tokens[:, 1:].reshape(-1)
        if learnt is not None:
            flat, targets = flat[learnt.reshape(-1)], targets[learnt.reshape(-1)]
        nats = cross_entropy(flat, table, head, targets)
        loss = nats + BALANCE * len(targets) * imbalance
        if self.objectives is not None:
            loss = loss + self.objectives(hidden, tokens, table, head, self._known())
        return loss, nats.detach()

    def table(self) -> Tensor:
        """(V, C) in float32: the embeddings, with what the tokens' text adds."""
        if self.features is None:
            return self.embedding
        return torch.addmm(self.embedding, self._known().features, self.features)

    def hidden(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Normed states (B, T, C) behind the last block of tokens (B, T)."""
        return self._through(tokens, table)[0]

    def _through(self, tokens: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the imbalance of all layers' experts together."""
        x = F.embedding(tokens, table).to(self.dtype)
        turn = near = self._turn(tokens, self.config.rope_theta)
        if self.config.local_rope_theta:
            near = self._turn(tokens, self.config.local_rope_theta)
        total = torch.zeros(())
        for layer in range(self.config.layers):
            here = near if self.config.local(layer) else turn
            if self._recipe.recompute and torch.is_grad_enabled():
                x, imbalance = checkpoint(self._block, x, layer, here, use_reentrant=False)
            else:
                x, imbalance = self._block(x, layer, here)
            total = total + imbalance
        return norm(x, self.config.norm_eps), total

    def _turn(self, tokens: Tensor, theta: float) -> Turn:
        """Cosines and sines (B or 1, T, D/2), as `language.transformer.rotation` has them.

        With hierarchy, pairs that turn slowly by tokens turn by words, sentences, paragraphs.
        """
        half = self.config.head_dim // 2
        steps = torch.arange(half, dtype=torch.float32) / half
        speeds = theta**-steps
        if self._recipe.hierarchy:
            where = places(tokens, self._known()).float()
            slow = [half * eighths // 16 for eighths in LEVELS]
            owners = [0] * (half - sum(slow)) + [1] * slow[0] + [2] * slow[1] + [3] * slow[2]
            for level, count in enumerate(slow, 1):
                first = half - sum(slow[level - 1 :])
                speeds[first : first + count] = 2.0 ** -torch.arange(count)
            angles = where[..., owners] * speeds
        else:
            angles = torch.arange(tokens.shape[1], dtype=torch.float32)[None, :, None] * speeds
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _block(self, x: Tensor, layer: int, turn: Turn) -> tuple[Tensor, Tensor]:
        """(B, T, C) → (B, T, C), and the imbalance of its experts, 0 without any."""
        window = self.config.window if self.config.local(layer) else 0
        x = x + self._attend(norm(x, self.config.norm_eps), layer, turn, window)
        thought, imbalance = self._think(norm(x, self.config.norm_eps), layer)
        return x + thought, imbalance

    def _think(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        experts: list[Expert] = [
            partial(self._mlp, layer=layer, sites=sites) for sites in mlps(self.config)
        ]
        if not self.config.experts:
            return experts[0](x), torch.zeros(())
        router, chosen = self.routers[layer], self.config.experts_per_token
        y, imbalance = mixed(x.flatten(0, 1), router, experts, chosen)
        return y.view(x.shape), imbalance

    def _mlp(self, x: Tensor, layer: int, sites: tuple[str, str]) -> Tensor:
        expand, contract = sites
        activate = gated_unit if self.config.gated else squared_relu
        return self._project(activate(self._project(x, layer, expand)), layer, contract)

    def _attend(self, x: Tensor, layer: int, turn: Turn, window: int) -> Tensor:
        B, T, _ = x.shape
        H, G, D = self.config.heads, self.config.kv_heads, self.config.head_dim
        heads = self._project(x, layer, "qkv").view(B, T, -1, D)
        q, k = heads[:, :, :H], heads[:, :, H : H + G]
        if self.config.head_norm:
            q, k = norm(q, self.config.norm_eps), norm(k, self.config.norm_eps)
        cos, sin = turn
        q = rotated(q, cos * D**-0.5, sin * D**-0.5)  # attention wants its queries scaled
        k = rotated(k, cos, sin)
        v = heads[:, :, H + G :].transpose(1, 2).contiguous()
        y = attention(q, k, v, window).transpose(1, 2).reshape(B, T, -1)
        return self._project(y, layer, "out")

    def _project(self, x: Tensor, layer: int, site: str) -> Tensor:
        return F.linear(x, self._work[f"{MATRICES}{layer}-{site}"])

    # --- what comes of it ------------------------------------------------------------------

    @torch.no_grad()
    def nats(self, tokens: Tensor) -> Tensor:
        """Nats (B, T) of tokens (B, T + 1) behind the first of each row, exact to float32."""
        table = self.table()
        hidden, head = self.hidden(tokens[:, :-1], table), table.to(self.dtype)
        targets = tokens[:, 1:]
        parts = zip(hidden.flatten(0, 1).split(ROWS), targets.flatten().split(ROWS), strict=True)
        nats = [F.cross_entropy(F.linear(h, head).float(), t, reduction="none") for h, t in parts]
        return torch.cat(nats).view(targets.shape)

    @torch.no_grad()
    def exported(self) -> dict[str, Tensor]:
        """The weights as `Transformer.state_dict` names them, without a tied head.

        Raises:
            InvalidError: serving knows nothing of hierarchy-aware rotations.
        """
        if self._recipe.hierarchy:
            raise InvalidError("a model with hierarchy = True cannot be served; learn it without")
        ones = torch.ones(self.config.d_model)
        weights = {"embedding.weight": self.table().detach(), "norm.weight": ones}
        for layer in range(self.config.layers):
            stem = f"blocks.{layer}"
            weights |= {f"{stem}.attention_norm.weight": ones, f"{stem}.mlp_norm.weight": ones}
            if self.config.head_norm:
                names = (f"{stem}.query_norm.weight", f"{stem}.key_norm.weight")
                weights |= dict.fromkeys(names, torch.ones(self.config.head_dim))
            weights |= {f"{stem}.{name}": weight for name, weight in self._served(layer).items()}
        return weights

    def _served(self, layer: int) -> dict[str, Tensor]:
        """A block's matrices as serving has them: experts above each other."""
        served = {
            f"{site}.weight": self.matrices[f"{layer}-{site}"].detach()
            for site in self.config.sites
        }
        if not self.config.experts:
            return served
        served["mixture.router.weight"] = self.routers[layer].detach()
        for name, sites in self._stacked():
            parts = [self.matrices[f"{layer}-{site}"].detach() for site in sites]
            served[f"mixture.{name}.weight"] = torch.cat(parts)
        return served

    def _stacked(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Name of each of a mixture's matrices where it is served → those that it is put together of."""
        return zip(("expand", "contract"), zip(*mlps(self.config), strict=True), strict=True)

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with weights that `exported` gave.

        Raises:
            InvalidError: norms have scales, which nothing here could learn or keep.
        """
        for name, weight in weights.items():
            if "norm" in name and not torch.all(weight == 1):
                raise InvalidError(
                    f"{name!r} has scales of its own: only a model that `soma pretrain` made "
                    "can be gone on with"
                )
        self.embedding.copy_(weights["embedding.weight"])
        for layer in range(self.config.layers):
            self._take(layer, weights, f"blocks.{layer}")

    def _take(self, layer: int, weights: Mapping[str, Tensor], stem: str) -> None:
        for site in self.config.sites:
            self.matrices[f"{layer}-{site}"].copy_(weights[f"{stem}.{site}.weight"])
        if not self.config.experts:
            return
        self.routers[layer].copy_(weights[f"{stem}.mixture.router.weight"])
        for name, sites in self._stacked():
            parts = weights[f"{stem}.mixture.{name}.weight"].chunk(len(sites))
            for site, part in zip(sites, parts, strict=True):
                self.matrices[f"{layer}-{site}"].copy_(part)

    def transformer(self, dtype: torch.dtype = torch.float32) -> Transformer:
        """The same model as serving knows it."""
        weights: Mapping[str, Tensor] = self.exported()
        return Transformer.from_weights(self.config, {n: w.to(dtype) for n, w in weights.items()})


def _require_learnable(config: TransformerConfig) -> None:
    """Refuse what serving knows and the learner does not."""
    if config.gated != (config.activation == "silu"):
        raise InvalidError(
            f"activation {config.activation!r} with gated = {config.gated!r} cannot be learnt; "
            "use 'silu' with a gate, or 'relu2' without"
        )
    learnable = {"activation": "silu", "gated": True, "head_norm": False} | dict.fromkeys(
        ("window", "global_every", "local_rope_theta", "experts", "experts_per_token"), 0
    )
    plain = replace(config, **learnable)
    if beyond := plain.beyond_llama():
        raise InvalidError(f"a model with {beyond} can be served, not learnt from nothing")
    if not config.tied_embeddings:
        raise InvalidError("tied_embeddings = False cannot be learnt; the table is the head")
