"""A model in a GGUF file: its sizes, tokenizer and weights under our names."""

import math
from pathlib import Path

import torch
from torch import Tensor

from arbiters.errors import CorruptError, InvalidError
from soma_agents.language.architecture import SITES, TransformerConfig
from soma_agents.language.gguf_file import GgufFile
from soma_agents.language.linear import Linear, stored_linear
from soma_agents.language.tokenizer import ChatTokenizer

SITE_TENSORS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "out": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
"""Our fused matrices → the names of their parts in a GGUF file."""

NORM_TENSORS = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}
OUTER_TENSORS = {
    "embedding": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
}


class GgufCheckpoint:
    """See `Checkpoint`.

    Raises:
        NotFoundError: there is no such file.
        CorruptError: the file is damaged or contradicts itself.
        InvalidError: it holds a model of another family.
    """

    def __init__(self, path: Path) -> None:
        self.file = GgufFile(path)
        self.config = read_config(self.file)

    def close(self) -> None:
        """Unmap the file."""
        self.file.close()

    def tokenizer(self) -> ChatTokenizer:
        """Text ↔ tokens."""
        return ChatTokenizer(self.file.metadata)

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor named as in `Transformer.state_dict`."""
        parts = [self._part(theirs) for theirs in names_of(name)]
        return torch.cat(parts).to(dtype) if len(parts) > 1 else parts[0].to(dtype)

    def linear(self, name: str) -> Linear | None:
        """The product with a matrix as the file stores it; None if no kernel fits."""
        if name == "head.weight" and self.config.tied_embeddings:
            name = "embedding.weight"
        theirs = names_of(name)
        orders = {
            part: head_permutation(self.file.tensors[part].shape[0], self.config.head_dim)
            for part in theirs
            if _rotated(part)
        }
        return stored_linear(self.file, theirs, orders)

    def _part(self, name: str) -> Tensor:
        weight = torch.from_numpy(self.file.tensor(name))
        if (shape := self._shape(name)) != tuple(weight.shape):
            raise CorruptError(
                f"model tensor {name!r} is {tuple(weight.shape)!r}, its sizes say {shape!r}"
            )
        if _rotated(name):
            weight = weight[head_permutation(weight.shape[0], self.config.head_dim)]
        return weight

    def _shape(self, name: str) -> tuple[int, ...]:
        config, kind = self.config, name.split(".")[-2]
        if name in (OUTER_TENSORS["embedding"], OUTER_TENSORS["head"]):
            return config.vocab_size, config.d_model
        for site, parts in SITE_TENSORS.items():
            for part, projection in zip(parts, SITES[site], strict=True):
                if part == kind:
                    return config.shape(projection)
        return (config.d_model,)


def names_of(name: str) -> tuple[str, ...]:
    """A tensor's name in our transformer → the names of its parts in a GGUF file."""
    owner = name.removesuffix(".weight")
    if owner in OUTER_TENSORS:
        return (OUTER_TENSORS[owner],)
    _, layer, part = owner.split(".")
    parts = SITE_TENSORS.get(part) or (NORM_TENSORS[part],)
    return tuple(f"blk.{layer}.{part}.weight" for part in parts)


def _rotated(name: str) -> bool:
    return name.endswith(("attn_q.weight", "attn_k.weight"))


def read_config(file: GgufFile) -> TransformerConfig:
    """Sizes from a GGUF file's metadata, checked against the tensors it has.

    Raises:
        CorruptError: a number is missing or cannot be true.
        InvalidError: the model is of another family.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise InvalidError(f"the model's architecture is {architecture!r}; SOMA runs 'llama'")
    heads = _whole(file, "llama.attention.head_count")
    d_model = _whole(file, "llama.embedding_length")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CorruptError("the model file has no token embeddings")
    layers = _whole(file, "llama.block_count")
    if layers > len(file.tensors):
        raise CorruptError(f"the model file declares {layers!r} layers, it does not hold them")
    return TransformerConfig(
        vocab_size=embedding.shape[0],
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=_whole(file, "llama.attention.head_count_kv", heads),
        head_dim=_whole(file, "llama.attention.key_length", d_model // heads),
        d_ff=_whole(file, "llama.feed_forward_length"),
        context=_whole(file, "llama.context_length"),
        rope_theta=_real(file, "llama.rope.freq_base", 10_000.0),
        norm_eps=_real(file, "llama.attention.layer_norm_rms_epsilon", 1e-5),
        tied_embeddings="output.weight" not in file.tensors,
    )


def head_permutation(outputs: int, head_dim: int) -> Tensor:
    """Row order that undoes llama.cpp's layout of q and k.

    llama.cpp rotates neighbours (2i, 2i + 1), `transformers` and we rotate (i, i + D/2); its
    converter reorders the rows of each head accordingly.
    """
    rows = torch.arange(outputs).view(-1, head_dim // 2, 2)
    return rows.transpose(1, 2).reshape(-1)


def _whole(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.metadata.get(key, default)
    if not isinstance(value, int) or value < 1:
        raise CorruptError(f"the model file's {key} is {value!r}, not a whole number above 0")
    return value


def _real(file: GgufFile, key: str, default: float) -> float:
    value = file.metadata.get(key, default)
    if not isinstance(value, float) or not 0 < value < math.inf:
        raise CorruptError(f"the model file's {key} is {value!r}, not a number above 0")
    return value
