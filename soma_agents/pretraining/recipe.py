"""What a run is made of: sizes, rates, lengths. Two presets, and one dial that derives the rest."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from arbiters.errors import InvalidError
from soma_agents.language.architecture import ATTENTION_SITES, MOST_EXPERTS, TransformerConfig
from soma_agents.language.precision import fastest_format
from soma_agents.training.schedules import CURVES

Precision = Literal["bfloat16", "float16", "float32"]
Objective = Literal["structure", "hierarchy", "coherence"]

HEAD_DIM = 64
DEEPEST = 64
TOKENS_PER_PARAMETER = 20
"""Compute-optimal, after Hoffmann et al. 2022 (table 3)."""
TUNING_TOKENS, TUNING_BATCH = 1_000_000, 4096
TUNING_SHARE = 0.2
"""Of the rates that a model begins with."""
MLP = ("gate_up", "down")
LONG_THETA, NEAR_THETA = 1_000_000.0, 10_000.0
"""Of rotations in layers that see all of a long context, and in local ones (arXiv:2503.19786, 2.1)."""
LONG = 8192
"""Tokens of a context from which rotations are slowed."""
CHOSEN = 2
"""Experts that answer a token (arXiv:2401.04088)."""
BFLOAT16_PAYS = 256
"""Width below which casting costs more than it saves."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a run, its data apart."""

    name: str
    model: TransformerConfig
    row: int
    """Tokens of a row: as many are read together, none sees beyond."""
    batch_tokens: int
    """Tokens of an optimiser step."""
    tokens: int
    """Tokens of the whole run."""
    matrix_rate: float
    """Muon's learning rate, for the matrices of the blocks."""
    embedding_rate: float
    """AdamW's, for the embedding table."""
    schedule: str = "warm-up-stable-decay"
    warm_up: float = 0.02
    cool_down: float = 0.5
    floor: float = 0.02
    momentum: float = 0.95
    decay: float = 0.0
    clip: float = 1.0
    micro_rows: int = 4
    """Rows that go through the model together."""
    precision: Precision | None = None
    """What is computed in; None is the fastest, to be `settled` when the run begins."""
    recompute: bool = False
    evaluations: int = 8
    """Looks at the held-out text, the last one behind the last step."""
    patience: int = 8
    """Looks without a gain before the run stops early."""
    seed: int = 1
    features: bool = False
    """Embeddings begin with what the tokens' text tells (`structure`); folded in at the export."""
    hierarchy: bool = False
    """A part of each head turns by words, sentences and paragraphs; cannot be exported."""
    objectives: tuple[Objective, ...] = ()
    """What is learnt beside the next token."""
    replies_only: bool = False
    """Of dialogues only what the assistant says is learnt; the rest is heard. Text is learnt whole."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            InvalidError: names the field and its value.
        """
        checks = {
            "row": (
                f"1 to the context of {self.model.context}",
                1 <= self.row <= self.model.context,
            ),
            "batch_tokens": (f"at least a row of {self.row}", self.batch_tokens >= self.row),
            "tokens": (
                f"at least a batch of {self.batch_tokens}",
                self.tokens >= self.batch_tokens,
            ),
            "matrix_rate": ("above 0", 0 < self.matrix_rate < 1e3),  # noqa: PLR2004
            "embedding_rate": ("above 0", 0 < self.embedding_rate < 1e3),  # noqa: PLR2004
            "schedule": (f"of {sorted(CURVES)}", self.schedule in CURVES),
            "micro_rows": ("1 or more", self.micro_rows >= 1),
            "precision": (
                "bfloat16, float16 or float32",
                self.precision in {None, "bfloat16", "float16", "float32"},
            ),
            "clip": ("above 0", self.clip > 0),
        }
        for name, (allowed, ok) in checks.items():
            if not ok:
                raise InvalidError(f"{name} = {getattr(self, name)!r}; use {allowed}")

    @property
    def rows(self) -> int:
        """Rows of an optimiser step."""
        return max(1, self.batch_tokens // self.row)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return max(1, self.tokens // (self.rows * self.row))

    def facts(self) -> dict[str, Any]:
        """All of it in forms that JSON knows."""
        return asdict(self)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Recipe":
        """What `facts` gave."""
        model = TransformerConfig(**(facts["model"] | {"biases": tuple(facts["model"]["biases"])}))
        rest = {"model": model, "objectives": tuple(facts["objectives"])}
        return cls(**(dict(facts) | rest))

    def but(self, **changes: Any) -> "Recipe":
        """The same with some fields changed; None leaves a field as it is."""
        return replace(self, **{name: v for name, v in changes.items() if v is not None})

    def settled(self, device: str = "cpu") -> "Recipe":
        """The same with the number format that a model of its size computes in fastest there."""
        narrow = self.model.d_model < BFLOAT16_PAYS
        return self.but(
            precision=self.precision or ("float32" if narrow else fastest_format(device))
        )

    @property
    def format(self) -> Precision:
        """The number format of a recipe that is settled.

        Raises:
            InvalidError: it is not.
        """
        if self.precision is None:
            raise InvalidError(f"recipe {self.name!r} has no precision yet; settle it first")
        return self.precision


def mlps(model: TransformerConfig) -> list[tuple[str, str]]:
    """Names of a block's MLPs, the first matrix and the second of each: of all experts, or of one."""
    if not model.experts:
        return [("gate_up", "down")]
    return [(f"gate_up-{expert}", f"down-{expert}") for expert in range(model.experts)]


def matrices_of(model: TransformerConfig) -> dict[str, tuple[int, int]]:
    """Name → (outputs, inputs) of what a block multiplies with, routers apart."""
    shapes = {site: model.site_shape(site) for site in ATTENTION_SITES}
    for names in mlps(model):
        shapes |= {name: model.site_shape(site) for name, site in zip(names, MLP, strict=True)}
    return shapes


def parameters(model: TransformerConfig) -> int:
    """Numbers that a model learns while it is pretrained (norms have no scale of their own)."""
    block = sum(a * b for a, b in matrices_of(model).values()) + model.experts * model.d_model
    return model.layers * block + model.vocab_size * model.d_model


def active_parameters(model: TransformerConfig) -> int:
    """Those that one token meets: of a mixture's experts only the chosen ones."""
    expert = sum(a * b for a, b in (model.site_shape(site) for site in MLP))
    idle = model.experts - model.experts_per_token
    return parameters(model) - model.layers * idle * expert


def _model(**sizes: Any) -> TransformerConfig:
    common = {"rope_theta": 10_000.0, "norm_eps": 1e-6, "tied_embeddings": True}
    return TransformerConfig(**(common | sizes))


SHOWCASE = Recipe(
    name="showcase",
    model=_model(
        vocab_size=576,
        layers=3,
        d_model=128,
        heads=4,
        kv_heads=2,
        head_dim=32,
        d_ff=384,
        context=256,
    ),
    row=128,
    batch_tokens=2048,
    tokens=2048 * 120,
    matrix_rate=0.02,
    embedding_rate=0.01,
    micro_rows=16,
)
"""B10. 0.66 M parameters (`parameters` counts them)."""

V1 = Recipe(
    name="v1",
    model=_model(
        vocab_size=16_384,
        layers=12,
        d_model=512,
        heads=8,
        kv_heads=2,
        head_dim=64,
        d_ff=2048,
        context=1024,
        activation="relu2",
        gated=False,
        head_norm=True,
        window=256,
        global_every=4,
    ),
    row=1024,
    batch_tokens=16_384,
    tokens=10_000_000,
    matrix_rate=0.01,
    embedding_rate=0.005,
)
"""B9. 41.4 M parameters: 33.0 M in the blocks, 8.4 M in the embeddings that the head shares."""

PRESETS = {recipe.name: recipe for recipe in (SHOWCASE, V1)}


def preset(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        InvalidError: there is none of that name.
    """
    if name not in PRESETS:
        raise InvalidError(f"preset {name!r} is unknown; use one of {sorted(PRESETS)}, or --depth")
    return PRESETS[name]


def of_depth(depth: int) -> Recipe:
    """A whole compute-optimal recipe from the number of layers alone.

    Width is 64 a layer, as in nanochat; 20 tokens a parameter; the batch grows with the fourth
    root of the tokens' square (McCandlish et al. 2018: the noise scale grows as loss falls); the
    embedding's rate falls with the root of the width, Muon's needs no such rule.

    Raises:
        InvalidError: no whole number from 1 to 64.
    """
    if not 1 <= depth <= DEEPEST:
        raise InvalidError(f"depth = {depth!r}; use 1 to {DEEPEST}")
    width = HEAD_DIM * depth
    heads = max(1, width // HEAD_DIM)
    model = _model(
        vocab_size=min(65_536, 2048 * 2 ** ((depth + 3) // 4)),
        layers=depth,
        d_model=width,
        heads=heads,
        kv_heads=max(k for k in range(1, heads // 2 + 2) if heads % k == 0),
        head_dim=HEAD_DIM,
        d_ff=-(-width * 8 // 3 // 64) * 64,
        context=min(2048, 256 * depth),
    )
    tokens = TOKENS_PER_PARAMETER * parameters(model)
    batch = 1 << max(11, round(0.5 * tokens.bit_length() + 1))
    return Recipe(
        name=f"depth-{depth}",
        model=model,
        row=min(1024, model.context),
        batch_tokens=batch,
        tokens=max(tokens, batch),
        matrix_rate=0.02,
        embedding_rate=0.005 * (512 / width) ** 0.5,
        recompute=depth > 24,  # noqa: PLR2004 — beyond, activations outweigh the weights
    )


def with_experts(recipe: Recipe, count: int) -> Recipe:
    """The same with `count` experts for each MLP: half as wide, and two of them answer a token.

    A token meets as many numbers as before, the routers' apart.

    Raises:
        InvalidError: two cannot be chosen of so few, or there are too many.
    """
    if not CHOSEN <= count <= MOST_EXPERTS:
        raise InvalidError(f"experts = {count!r}; use {CHOSEN} to {MOST_EXPERTS}")
    model = replace(
        recipe.model,
        d_ff=max(1, recipe.model.d_ff // CHOSEN),
        experts=count,
        experts_per_token=CHOSEN,
    )
    return replace(recipe, name=f"{recipe.name}-experts-{count}", model=model)


def with_vocabulary(recipe: Recipe, size: int) -> Recipe:
    """The same for another vocabulary; how much is learnt, and how, stays as it was."""
    return replace(recipe, model=replace(recipe.model, vocab_size=size))


def with_context(recipe: Recipe, tokens: int) -> Recipe:
    """The same for a context of `tokens`, learnt in rows as long, one at a time.

    From `LONG` on heads turn more slowly, and each block is gone through twice: what it leaves in
    memory grows with the row.

    Raises:
        InvalidError: no context is that long.
    """
    model = replace(recipe.model, context=tokens)
    changes: dict[str, Any] = {}
    if tokens >= LONG:
        near = NEAR_THETA if model.window else 0.0
        model = replace(model, rope_theta=LONG_THETA, local_rope_theta=near)
        changes = {"recompute": True}
    batch = max(recipe.batch_tokens, tokens)
    return replace(
        recipe,
        name=f"{recipe.name}-context-{tokens}",
        model=model,
        row=tokens,
        batch_tokens=batch,
        tokens=max(recipe.tokens, batch),
        micro_rows=1,
        **changes,
    )


def of_base(model: TransformerConfig) -> Recipe:
    """A recipe to go on with a trained model: to learn to converse, or another kind of text.

    Smaller steps at lower rates than a model of its size begins with: what it knows is to stay.
    """
    row = min(1024, model.context)
    return Recipe(
        name="tuned",
        model=model,
        row=row,
        batch_tokens=max(row, TUNING_BATCH),
        tokens=TUNING_TOKENS,
        matrix_rate=0.02 * TUNING_SHARE,
        embedding_rate=0.005 * (512 / model.d_model) ** 0.5 * TUNING_SHARE,
        evaluations=16,
        micro_rows=max(1, TUNING_BATCH // 2 // row),
        replies_only=True,
    )
