"""What the tables of `families` are made of: where a tensor comes from and how it is straightened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arbiters.errors import InvalidError
from soma_agents.language.architecture import Activation, TransformerConfig
from soma_agents.language.gguf_checkpoint import head_permutation

Json = Mapping[str, Any]
Straighten = Callable[[list[Tensor], TransformerConfig], Tensor]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor of ours comes from: their names, and what makes one of them."""

    names: tuple[str, ...]
    make: Straighten


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture. In names `{}` is the number of the layer."""

    config: Callable[[Json], TransformerConfig]
    outer: Mapping[str, Source]
    block: Mapping[str, Source]

    def source(self, name: str) -> Source:
        """Where our tensor `name` comes from."""
        if name in self.outer:
            return self.outer[name]
        _, layer, part = name.split(".", maxsplit=2)
        found = self.block[part]
        return Source(tuple(theirs.format(layer) for theirs in found.names), found.make)


ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


# --- how tensors are straightened ----------------------------------------------------------


def stacked(parts: list[Tensor], _: TransformerConfig) -> Tensor:
    """Above each other, as they are."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def transposed(parts: list[Tensor], _: TransformerConfig) -> Tensor:
    """GPT-2 keeps (inputs, outputs)."""
    return parts[0].T


def one_more(parts: list[Tensor], _: TransformerConfig) -> Tensor:
    """Gemma multiplies by 1 + weight."""
    return parts[0] + 1


def scaled_query_norm(json_scalar: float) -> Straighten:
    """Gemma divides scores by √scalar, we by √D: the difference goes into the query's norm."""

    def make(parts: list[Tensor], config: TransformerConfig) -> Tensor:
        return (parts[0] + 1) * (config.head_dim / json_scalar) ** 0.5

    return make


def by_head(parts: list[Tensor], config: TransformerConfig) -> Tensor:
    """GPT-NeoX keeps query, key and value of a head together; we keep all queries first."""
    shape = (config.heads, 3, config.head_dim, *parts[0].shape[1:])
    return parts[0].reshape(shape).transpose(0, 1).reshape(parts[0].shape)


def neighbours_apart(parts: list[Tensor], config: TransformerConfig) -> Tensor:
    """GPT-J rotates neighbours (2i, 2i + 1) of a head's first dimensions, we (i, i + R/2)."""
    order = torch.arange(config.heads * config.head_dim).view(config.heads, config.head_dim)
    first = head_permutation(config.rotated, config.rotated)
    order[:, : config.rotated] = order[:, : config.rotated][:, first]
    query, key, value = parts
    return torch.cat((query[order.reshape(-1)], key[order.reshape(-1)], value))


def at(name: str, make: Straighten = stacked) -> Source:
    """One tensor of theirs."""
    return Source((name,), make)


def weight_and_bias(ours: str, theirs: str, make: Straighten = stacked) -> dict[str, Source]:
    """A layer's matrix and its bias, which is never transposed."""
    bias = stacked if make is transposed else make
    return {
        f"{ours}.weight": at(f"{theirs}.weight", make),
        f"{ours}.bias": at(f"{theirs}.bias", bias),
    }


# --- what `config.json` says ---------------------------------------------------------------


def rope_of(json: Json) -> Json:
    """Rotation's parameters: a table of its own since transformers 5."""
    return json.get("rope_parameters") or json.get("rope_scaling") or {}


def theta_of(json: Json, kind: str = "", default: float = 1e4) -> float:
    """The base of rotation's angles, in layers of a `kind` where they differ.

    Raises:
        InvalidError: angles are scaled.
    """
    found = rope_of(json)
    if kind and isinstance(found.get(kind), Mapping):
        found = found[kind]
    if (scaling := found.get("rope_type", found.get("type", "default"))) != "default":
        raise InvalidError(f"rope scaling {scaling!r} is not known; only unscaled rotation is")
    top = json.get("rope_theta") or json.get("rotary_emb_base")
    return float(found.get("rope_theta") or (top if kind != "sliding_attention" else 0) or default)


def activation_of(json: Json, *keys: str) -> Activation:
    """The activation under the first of `keys` that is there.

    Raises:
        InvalidError: we have no such activation.
    """
    name = next((json[key] for key in keys if json.get(key)), "silu")
    if name not in ACTIVATIONS:
        raise InvalidError(f"activation {name!r} is not known; known: {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def refuse(json: Json, **expected: Any) -> None:
    """Refuse a setting that is not as expected and not mapped.

    Raises:
        InvalidError: names it.
    """
    for key, value in expected.items():
        if (found := json.get(key, value)) != value:
            raise InvalidError(f"{key} is {found!r}; only {value!r} is mapped")
