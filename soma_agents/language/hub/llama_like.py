"""LLaMA, Mistral, Qwen 2 and 3, Gemma 3: rotation, RMSNorm, a gated MLP."""

from typing import Any

from arbiters.errors import InvalidError
from soma_agents.language.architecture import MOST_EXPERTS, TransformerConfig
from soma_agents.language.hub.table import (
    Family,
    Json,
    Source,
    activation_of,
    at,
    one_more,
    refuse,
    scaled_query_norm,
    stacked,
    theta_of,
)

_LAYER = "model.layers.{}"
_OUTER = {
    "embedding.weight": at("model.embed_tokens.weight"),
    "norm.weight": at("model.norm.weight"),
    "head.weight": at("lm_head.weight"),
}


def _three(kind: str) -> Source:
    return Source(tuple(f"{_LAYER}.self_attn.{x}_proj.{kind}" for x in "qkv"), stacked)


_LLAMA_BLOCK = {
    "attention_norm.weight": at(f"{_LAYER}.input_layernorm.weight"),
    "mlp_norm.weight": at(f"{_LAYER}.post_attention_layernorm.weight"),
    "qkv.weight": _three("weight"),
    "qkv.bias": _three("bias"),
    "out.weight": at(f"{_LAYER}.self_attn.o_proj.weight"),
    "gate_up.weight": Source(
        (f"{_LAYER}.mlp.gate_proj.weight", f"{_LAYER}.mlp.up_proj.weight"), stacked
    ),
    "down.weight": at(f"{_LAYER}.mlp.down_proj.weight"),
    "query_norm.weight": at(f"{_LAYER}.self_attn.q_norm.weight"),
    "key_norm.weight": at(f"{_LAYER}.self_attn.k_norm.weight"),
}


def _llama_sizes(json: Json, **changes: Any) -> TransformerConfig:
    heads, d_model = json["num_attention_heads"], json["hidden_size"]
    sizes: dict[str, Any] = {
        "vocab_size": json["vocab_size"],
        "layers": json["num_hidden_layers"],
        "d_model": d_model,
        "heads": heads,
        "kv_heads": json.get("num_key_value_heads") or heads,
        "head_dim": json.get("head_dim") or d_model // heads,
        "d_ff": json["intermediate_size"],
        "context": json["max_position_embeddings"],
        "rope_theta": theta_of(json),
        "norm_eps": json["rms_norm_eps"],
        "tied_embeddings": json.get("tie_word_embeddings", False),
        "activation": activation_of(json, "hidden_act", "hidden_activation"),
    }
    return TransformerConfig(**(sizes | changes))


def _llama(json: Json) -> TransformerConfig:
    refuse(json, attention_bias=False, mlp_bias=False)
    return _llama_sizes(json)


def _mistral(json: Json) -> TransformerConfig:
    return _llama_sizes(json, window=json.get("sliding_window") or 0)


def _qwen2(json: Json) -> TransformerConfig:
    refuse(json, use_sliding_window=False)
    return _llama_sizes(json, biases=("qkv",))


def _qwen3(json: Json) -> TransformerConfig:
    refuse(json, use_sliding_window=False, attention_bias=False)
    return _llama_sizes(json, head_norm=True)


def _gemma3(json: Json) -> TransformerConfig:
    refuse(json, attention_bias=False, final_logit_softcapping=None, attn_logit_softcapping=None)
    return _llama_sizes(
        json,
        tied_embeddings=json.get("tie_word_embeddings", True),
        head_norm=True,
        post_norm=True,
        embedding_scale=float(json["hidden_size"]) ** 0.5,
        window=json["sliding_window"],
        global_every=_global_every(json),
        local_rope_theta=theta_of(json, "sliding_attention", json.get("rope_local_base_freq", 1e4)),
        rope_theta=theta_of(json, "full_attention"),
    )


def _global_every(json: Json) -> int:
    kinds = json.get("layer_types")
    if kinds is None:
        return json.get("sliding_window_pattern", 6)
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else 0
    expected = [
        "full_attention" if every and (i + 1) % every == 0 else "sliding_attention"
        for i in range(len(kinds))
    ]
    if list(kinds) != expected:
        raise InvalidError(f"layer_types = {kinds!r}: global layers must come at regular distances")
    return every


def _gemma3_block(json: Json) -> dict[str, Source]:
    scalar = float(json.get("query_pre_attn_scalar") or json["head_dim"])
    norms = {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
        "key_norm": "self_attn.k_norm",
    }
    return {
        **_LLAMA_BLOCK,
        **{f"{o}.weight": at(f"{_LAYER}.{t}.weight", one_more) for o, t in norms.items()},
        "query_norm.weight": at(f"{_LAYER}.self_attn.q_norm.weight", scaled_query_norm(scalar)),
    }


def mixtral(json: Json) -> Family:
    """Mixtral's table has a row for each expert."""
    count = json["num_local_experts"]
    if not 1 <= count <= MOST_EXPERTS:
        raise InvalidError(f"num_local_experts is {count!r}; use 1 to {MOST_EXPERTS!r}")
    stem = f"{_LAYER}.block_sparse_moe"
    every = [f"{stem}.experts.{number}" for number in range(count)]
    block = {
        **_LLAMA_BLOCK,
        "mixture.router.weight": at(f"{stem}.gate.weight"),
        "mixture.expand.weight": Source(
            tuple(f"{one}.{part}.weight" for one in every for part in ("w1", "w3")), stacked
        ),
        "mixture.contract.weight": Source(tuple(f"{one}.w2.weight" for one in every), stacked),
    }
    return Family(_mixtral, _OUTER, block)


def _mixtral(json: Json) -> TransformerConfig:
    return _llama_sizes(
        json,
        window=json.get("sliding_window") or 0,
        experts=json["num_local_experts"],
        experts_per_token=json["num_experts_per_tok"],
    )


LLAMA = Family(_llama, _OUTER, _LLAMA_BLOCK)
MISTRAL = Family(_mistral, _OUTER, _LLAMA_BLOCK)
QWEN2 = Family(_qwen2, _OUTER, _LLAMA_BLOCK)
QWEN3 = Family(_qwen3, _OUTER, _LLAMA_BLOCK)


def gemma3(json: Json) -> Family:
    """Gemma 3's table depends on the scale of its attention scores."""
    outer = {**_OUTER, "norm.weight": at("model.norm.weight", one_more)}
    return Family(_gemma3, outer, _gemma3_block(json))
