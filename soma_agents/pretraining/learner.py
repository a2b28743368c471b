"""SOMA-LM while it learns: float32 masters, a working copy in the format that computes fastest.

The same arithmetic as `language.transformer.Transformer`, which is its oracle, with the kernels
of this package. Norms have no scale of their own while learning: a scale of one goes into the
export. What is SOMA's own (`structure`) can be switched on part by part; docs/log.md tells what
each part was worth.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arbiters.errors import InvalidError
from soma_agents.language.architecture import TransformerConfig
from soma_agents.language.transformer import Transformer
from soma_agents.pretraining.block import Block, Turn
from soma_agents.pretraining.experts import BALANCE
from soma_agents.pretraining.kernels import ROWS, cross_entropy, norm
from soma_agents.pretraining.objectives import Objectives
from soma_agents.pretraining.recipe import Recipe, mlps
from soma_agents.pretraining.sharding import held, put, shard, whole
from soma_agents.pretraining.structure import Traits, places
from soma_agents.training.device import CPU

MATRICES = "matrices."
"""Names of the weights that Muon takes begin so (`Learner.named`)."""
DRAWN = (MATRICES, "routers.")
BLOCK = re.compile(r"^blocks\.(\d+)\.matrices\.")
WRITING = re.compile("out$|down")
"""Names of those whose products are added to the stream."""

LEVELS = (4, 2, 2)
"""Eighths of the slow half of a head's pairs that turn by words, sentences, paragraphs."""


class Learner(nn.Module):
    """Parameters of a language model, and its loss."""

    def __init__(self, recipe: Recipe, traits: Traits | None = None) -> None:
        """`traits` of the vocabulary are needed for what is SOMA's own.

        Raises:
            InvalidError: the learner does not know the activation, or lacks the traits; the recipe
                is not settled.
        """
        super().__init__()
        config = recipe.model
        _require_learnable(config)
        self.config = config
        self.dtype: torch.dtype = getattr(torch, recipe.format)
        self._recipe = recipe
        self._traits = traits
        self._leaves: dict[str, nn.Parameter] = {}
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        self.blocks = nn.ModuleList(Block(recipe, layer) for layer in range(config.layers))
        self.routers = nn.ParameterList(
            nn.Parameter(torch.empty(config.experts, config.d_model))
            for _ in range(config.layers if config.experts else 0)
        )
        self.features: nn.Parameter | None = None
        if recipe.features:
            columns = self._known().features.shape[1]
            self.features = nn.Parameter(torch.zeros(columns, config.d_model))
        self.objectives = Objectives(recipe) if recipe.objectives else None
        if not self.embedding.is_meta:
            self.draw(recipe.seed)

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Embeddings from N(0, 0.02²), matrices and routers uniform with variance 1/inputs.

        Those that write to the stream are zero: each block begins as the identity. So is what
        belongs to SOMA's own parts.
        """
        generator = torch.Generator().manual_seed(seed)
        named = self.named()
        for name in sorted(named, key=_turn_of):
            drawn = torch.zeros(named[name].shape)
            if name == "embedding":
                drawn.normal_(0, 0.02, generator=generator)
            elif name.startswith(DRAWN) and not WRITING.search(name):
                reach = (3 / drawn.shape[1]) ** 0.5
                drawn.uniform_(-reach, reach, generator=generator)
            put(named[name], drawn)

    def named(self) -> dict[str, nn.Parameter]:
        """Every parameter by the name that it has in checkpoints."""
        return {BLOCK.sub(rf"{MATRICES}\1-", name): p for name, p in self.named_parameters()}

    def shard(self, workers: int, device: torch.device = CPU) -> None:
        """Part a learner that lies on the meta device among the workers of the process group."""
        shard(self, [*self.blocks], self.dtype, workers, device)
        self._leaves = {n: nn.Parameter(held(p.detach())) for n, p in self.named().items()}
        self.draw(self._recipe.seed)

    @property
    def sharded(self) -> bool:
        """Whether this worker holds only some rows of each parameter."""
        return bool(self._leaves)

    def held(self) -> dict[str, nn.Parameter]:
        """What this worker holds of each parameter: all of it, or some rows in the same memory."""
        return self._leaves or self.named()

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
        if self.sharded:  # a pass gathers the masters as they are then
            for parameter in (*self.parameters(), *self._leaves.values()):
                parameter.grad = None
            return
        for master in self.parameters():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            else:
                master.grad.zero_()
        for block in self._blocks():
            block.refresh(self.dtype)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the working copy's gradients to the masters' in float32."""
        if self.sharded:
            for name, parameter in self.named().items():
                if parameter.grad is not None:
                    self._leaves[name].grad = held(parameter.grad)
            return
        for block in self._blocks():
            block.collect()

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", [*self.blocks])

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
        total = torch.zeros((), device=tokens.device)
        for layer in range(self.config.layers):
            here = near if self.config.local(layer) else turn
            router = self.routers[layer] if self.config.experts else None
            x, imbalance = self.blocks[layer](x, here, router)
            total = total + imbalance
        return norm(x, self.config.norm_eps), total

    def _turn(self, tokens: Tensor, theta: float) -> Turn:
        """Cosines and sines (B or 1, T, D/2), as `language.transformer.rotation` has them.

        With hierarchy, pairs that turn slowly by tokens turn by words, sentences, paragraphs.
        """
        half = self.config.head_dim // 2
        device = tokens.device
        steps = torch.arange(half, dtype=torch.float32, device=device) / half
        speeds = theta**-steps
        if self._recipe.hierarchy:
            where = places(tokens, self._known()).float()
            slow = [half * eighths // 16 for eighths in LEVELS]
            owners = [0] * (half - sum(slow)) + [1] * slow[0] + [2] * slow[1] + [3] * slow[2]
            for level, count in enumerate(slow, 1):
                first = half - sum(slow[level - 1 :])
                speeds[first : first + count] = 2.0 ** -torch.arange(count, device=device)
            angles = where[..., owners] * speeds
        else:
            numbers = torch.arange(tokens.shape[1], dtype=torch.float32, device=device)
            angles = numbers[None, :, None] * speeds
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

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

    def exported(self) -> Iterator[tuple[str, Tensor]]:
        """The weights as `Transformer.state_dict` names them, without a tied head, one by one.

        They lie in the CPU's memory, whatever the learner computes on. Of a parted learner every
        worker must go through all of them.

        Raises:
            InvalidError: serving knows nothing of hierarchy-aware rotations.
        """
        if self._recipe.hierarchy:
            raise InvalidError("a model with hierarchy = True cannot be served; learn it without")
        for name, weight in self._exported():
            yield name, weight.cpu()

    @torch.no_grad()
    def _exported(self) -> Iterator[tuple[str, Tensor]]:
        ones = torch.ones(self.config.d_model)
        yield "norm.weight", ones
        table = whole(self.embedding)
        if self.features is not None:
            table = torch.addmm(table, self._known().features, whole(self.features))
        yield "embedding.weight", table
        for layer in range(self.config.layers):
            stem = f"blocks.{layer}"
            yield f"{stem}.attention_norm.weight", ones
            yield f"{stem}.mlp_norm.weight", ones
            if self.config.head_norm:
                for name in ("query_norm", "key_norm"):
                    yield f"{stem}.{name}.weight", torch.ones(self.config.head_dim)
            for name, weight in self._served(layer):
                yield f"{stem}.{name}", weight

    def _served(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """A block's matrices as serving has them: experts above each other."""
        matrices = self._blocks()[layer].matrices
        for site in self.config.sites:
            yield f"{site}.weight", whole(matrices[site])
        if not self.config.experts:
            return
        yield "mixture.router.weight", whole(self.routers[layer])
        for name, sites in self._stacked():
            yield f"mixture.{name}.weight", torch.cat([whole(matrices[site]) for site in sites])

    def _stacked(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Name of each of a mixture's matrices where it is served → those that it is put together of."""
        return zip(("expand", "contract"), zip(*mlps(self.config), strict=True), strict=True)

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with weights that `exported` gave.

        Raises:
            InvalidError: norms have scales, which nothing here could learn or keep.
        """
        for name in weights:
            if "norm" in name and not torch.all(weights[name] == 1):
                raise InvalidError(
                    f"{name!r} has scales of its own: only a model that `soma pretrain` made "
                    "can be gone on with"
                )
        put(self.embedding, weights["embedding.weight"])
        for layer in range(self.config.layers):
            self._take(layer, weights, f"blocks.{layer}")

    def _take(self, layer: int, weights: Mapping[str, Tensor], stem: str) -> None:
        matrices = self._blocks()[layer].matrices
        for site in self.config.sites:
            put(matrices[site], weights[f"{stem}.{site}.weight"])
        if not self.config.experts:
            return
        put(self.routers[layer], weights[f"{stem}.mixture.router.weight"])
        for name, sites in self._stacked():
            parts = weights[f"{stem}.mixture.{name}.weight"].chunk(len(sites))
            for site, part in zip(sites, parts, strict=True):
                put(matrices[site], part)

    def transformer(self, dtype: torch.dtype = torch.float32) -> Transformer:
        """The same model as serving knows it."""
        weights = {name: weight.to(dtype) for name, weight in self.exported()}
        return Transformer.from_weights(self.config, weights)


def _turn_of(name: str) -> str:
    """What a seed's numbers are given to one after another: matrices as their names are sorted."""
    return name if name.startswith(MATRICES) else name.partition(".")[0]


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
