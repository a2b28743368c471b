"""What a transformer is: its sizes, and in what it differs from the LLaMA family."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from arbiters.errors import InvalidError

SITES: dict[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "out": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""Fused matrices of a block → the projections inside, in the order of their rows."""

ATTENTION_SITES = ("qkv", "out")
MOST_EXPERTS = 1024
MOST_CONTEXT = 1 << 20
"""Tokens. Tables of rotations have a row for each: a file must not ask for any number of them."""

MOST = {
    "vocab_size": 1 << 24,
    "layers": 1 << 16,
    "d_model": 1 << 24,
    "heads": 1 << 16,
    "kv_heads": 1 << 16,
    "head_dim": 1 << 16,
    "d_ff": 1 << 24,
    "context": MOST_CONTEXT,
}
"""Sizes whose products a whole number of the machine holds."""

FAMILY_FIELDS = 11
"""Fields of a configuration that are sizes; those behind them say in what a model is no LLaMA."""

PROJECTIONS: tuple[str, ...] = tuple(name for names in SITES.values() for name in names)


Norm = Literal["rms", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu2"]


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Sizes of a transformer. `context` is in tokens. The defaults are the LLaMA family's."""

    vocab_size: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    context: int
    rope_theta: float
    norm_eps: float
    tied_embeddings: bool
    norm: Norm = "rms"
    """"layer" subtracts the mean and has biases."""
    activation: Activation = "silu"
    gated: bool = True
    """Whether the MLP multiplies by a gate; without one the activation is applied to `up`."""
    biases: tuple[str, ...] = ()
    """Sites whose matrices have biases; "head" is one more."""
    head_norm: bool = False
    """Whether queries and keys are normed, a head at a time, before they are rotated."""
    post_norm: bool = False
    """Whether what attention and MLP give is normed before it is added to the stream."""
    parallel: bool = False
    """Whether attention and MLP read the same stream, side by side."""
    rotary_dim: int | None = None
    """Dimensions of a head that are rotated; None is all of them, 0 none."""
    learned_positions: bool = False
    """Whether a learnt vector for its position is added to each token."""
    embedding_scale: float = 1.0
    window: int = 0
    """Tokens, its own among them, that a token sees in local layers; 0: no layer is local."""
    global_every: int = 0
    """Among local layers, each so many-th is global; 0: none is."""
    local_rope_theta: float = 0.0
    """Of local layers; 0 is `rope_theta`."""
    experts: int = 0
    """MLPs of width `d_ff` to choose from in each layer; 0: one, and no choice."""
    experts_per_token: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            InvalidError: names the field and its value.
        """
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise InvalidError(
                    f"transformer {name} = {getattr(self, name)!r}; use 1 to {most!r}"
                )
        if self.heads % self.kv_heads:
            raise InvalidError(
                f"transformer heads = {self.heads!r} is no multiple of kv_heads = {self.kv_heads!r}"
            )
        if self.rotated % 2 or not 0 <= self.rotated <= self.head_dim:
            raise InvalidError(
                f"transformer rotates {self.rotated!r} of head_dim = {self.head_dim!r}; "
                "rotation needs an even number up to that"
            )
        if self.activation not in get_args(Activation):
            raise InvalidError(f"transformer activation = {self.activation!r} is unknown")
        if unknown := set(self.biases) - {*SITES, "head"}:
            raise InvalidError(f"transformer biases = {min(unknown)!r}; use sites or 'head'")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in ("rope_theta", "norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidError(f"transformer {name} = {getattr(self, name)!r}; use above 0")
        if not (0 <= self.experts_per_token <= self.experts <= MOST_EXPERTS) or (
            bool(self.experts) != bool(self.experts_per_token)
        ):
            raise InvalidError(
                f"transformer experts = {self.experts_per_token!r} of {self.experts!r}; "
                f"use 1 or more of up to {MOST_EXPERTS!r}, or none"
            )
        if not (0 <= self.window <= MOST_CONTEXT and self.global_every >= 0):
            raise InvalidError(f"transformer window = {self.window!r}, {self.global_every!r}")
        if not 0 <= self.local_rope_theta < math.inf or not 0 < self.embedding_scale < math.inf:
            raise InvalidError("transformer local_rope_theta or embedding_scale is no sound number")

    @property
    def sites(self) -> tuple[str, ...]:
        """The fused matrices of a block; a mixture's are its own."""
        return ATTENTION_SITES if self.experts else tuple(SITES)

    @property
    def rotated(self) -> int:
        """Dimensions of a head that are rotated."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    def local(self, layer: int) -> bool:
        """Whether a layer sees only the last `window` tokens."""
        every = self.global_every
        return self.window > 0 and not (every and (layer + 1) % every == 0)

    def beyond_llama(self) -> str:
        """What of this model the LLaMA family has not; empty if it is of the family."""
        differs = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)[FAMILY_FIELDS:]
            if getattr(self, field.name) != field.default
        ]
        return ", ".join(differs)

    def shape(self, projection: str) -> tuple[int, int]:
        """(outputs, inputs) of a projection."""
        width, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (width, self.d_model),
            "k_proj": (narrow, self.d_model),
            "v_proj": (narrow, self.d_model),
            "o_proj": (self.d_model, width),
            "gate_proj": (self.d_ff if self.gated else 0, self.d_model),
            "up_proj": (self.d_ff, self.d_model),
            "down_proj": (self.d_model, self.d_ff),
        }[projection]

    def site_shape(self, site: str) -> tuple[int, int]:
        """(outputs, inputs) of a fused matrix."""
        shapes = [self.shape(name) for name in SITES[site]]
        return sum(outputs for outputs, _ in shapes), shapes[0][1]
