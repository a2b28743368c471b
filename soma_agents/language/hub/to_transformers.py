"""Export to a directory that `transformers` reads as `LlamaForCausalLM`."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from soma_agents.language.architecture import SITES, TransformerConfig
from soma_agents.language.checkpoint import Checkpoint
from soma_agents.language.hub.plain import refuse_other_families
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.language.transformer import weight_shapes

OUTER = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
HOMES = {"qkv": "self_attn", "out": "self_attn", "gate_up": "mlp", "down": "mlp"}


def export_transformers(
    source: Checkpoint, directory: Path, *, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write `model.safetensors`, `config.json`, the tokenizer's files and its chat template.

    Raises:
        InvalidError: the model is not of the LLaMA family.
    """
    refuse_other_families(source.config, "safetensors")
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name in weight_shapes(source.config):
        tensors |= their_parts(source.config, name, source.tensor(name, dtype))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    tokenizer = source.tokenizer()
    name_of_dtype = str(dtype).removeprefix("torch.")
    files: dict[str, Any] = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": name_of_dtype,
            "eos_token_id": list(tokenizer.eos_ids),
            **their_sizes(source.config),
        },
        "generation_config.json": {"eos_token_id": list(tokenizer.eos_ids)},
        "tokenizer_config.json": _tokenizer_config(tokenizer),
    }
    for name, value in files.items():
        (directory / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    (directory / "tokenizer.json").write_text(tokenizer.to_json())
    for path in directory.iterdir():
        _sync(path)
    _sync(directory)


def their_parts(config: TransformerConfig, name: str, weight: Tensor) -> dict[str, Tensor]:
    """A tensor of `Transformer.state_dict` under their names, fused ones taken apart."""
    if name in OUTER:
        return {OUTER[name]: weight.contiguous()}
    _, layer, part, _ = name.split(".")
    stem = f"model.layers.{layer}"
    if part in NORMS:
        return {f"{stem}.{NORMS[part]}.weight": weight.contiguous()}
    pieces = weight.split([config.shape(projection)[0] for projection in SITES[part]])
    return {
        f"{stem}.{HOMES[part]}.{projection}.weight": piece.contiguous()
        for projection, piece in zip(SITES[part], pieces, strict=True)
    }


def their_sizes(config: TransformerConfig) -> dict[str, Any]:
    """The arguments of their `LlamaConfig`."""
    return {
        "attention_bias": False,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.context,
        "mlp_bias": False,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "vocab_size": config.vocab_size,
    }


def _tokenizer_config(tokenizer: ChatTokenizer) -> dict[str, Any]:
    found: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if tokenizer.eos_ids:
        found["eos_token"] = tokenizer.token(tokenizer.eos_ids[0])
    if tokenizer.template:
        found["chat_template"] = tokenizer.template
    return found


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
