"""GPT-2, GPT-NeoX, GPT-J: LayerNorm, biases, an MLP without a gate."""

from typing import Any

from soma_agents.language.architecture import TransformerConfig
from soma_agents.language.hub.table import (
    Family,
    Json,
    Source,
    activation_of,
    at,
    by_head,
    neighbours_apart,
    refuse,
    rope_of,
    theta_of,
    transposed,
    weight_and_bias,
)

_GPT: dict[str, Any] = {"norm": "layer", "gated": False}
_ALL_BIASES = ("qkv", "out", "gate_up", "down")


def _gpt2(json: Json) -> TransformerConfig:
    refuse(json, scale_attn_by_inverse_layer_idx=False, scale_attn_weights=True)
    d_model, heads = json["n_embd"], json["n_head"]
    return TransformerConfig(
        vocab_size=json["vocab_size"],
        layers=json["n_layer"],
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_dim=d_model // heads,
        d_ff=json.get("n_inner") or 4 * d_model,
        context=json["n_positions"],
        rope_theta=1e4,
        norm_eps=json["layer_norm_epsilon"],
        tied_embeddings=json.get("tie_word_embeddings", True),
        activation=activation_of(json, "activation_function"),
        biases=_ALL_BIASES,
        rotary_dim=0,
        learned_positions=True,
        **_GPT,
    )


_H = "transformer.h.{}"
_GPT2_OUTER = {
    "embedding.weight": at("transformer.wte.weight"),
    "positions.weight": at("transformer.wpe.weight"),
    **weight_and_bias("norm", "transformer.ln_f"),
    "head.weight": at("lm_head.weight"),
}
_GPT2_BLOCK = {
    **weight_and_bias("attention_norm", f"{_H}.ln_1"),
    **weight_and_bias("mlp_norm", f"{_H}.ln_2"),
    **weight_and_bias("qkv", f"{_H}.attn.c_attn", transposed),
    **weight_and_bias("out", f"{_H}.attn.c_proj", transposed),
    **weight_and_bias("gate_up", f"{_H}.mlp.c_fc", transposed),
    **weight_and_bias("down", f"{_H}.mlp.c_proj", transposed),
}


def _neox(json: Json) -> TransformerConfig:
    refuse(json, attention_bias=True)
    d_model, heads = json["hidden_size"], json["num_attention_heads"]
    head_dim = d_model // heads
    share = rope_of(json).get("partial_rotary_factor", json.get("rotary_pct", 0.25))
    return TransformerConfig(
        vocab_size=json["vocab_size"],
        layers=json["num_hidden_layers"],
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        d_ff=json["intermediate_size"],
        context=json["max_position_embeddings"],
        rope_theta=theta_of(json),
        norm_eps=json["layer_norm_eps"],
        tied_embeddings=json.get("tie_word_embeddings", False),
        activation=activation_of(json, "hidden_act"),
        biases=_ALL_BIASES,
        parallel=json.get("use_parallel_residual", True),
        rotary_dim=int(head_dim * share),
        **_GPT,
    )


_N = "gpt_neox.layers.{}"
_NEOX_OUTER = {
    "embedding.weight": at("gpt_neox.embed_in.weight"),
    **weight_and_bias("norm", "gpt_neox.final_layer_norm"),
    "head.weight": at("embed_out.weight"),
}
_NEOX_BLOCK = {
    **weight_and_bias("attention_norm", f"{_N}.input_layernorm"),
    **weight_and_bias("mlp_norm", f"{_N}.post_attention_layernorm"),
    **weight_and_bias("qkv", f"{_N}.attention.query_key_value", by_head),
    **weight_and_bias("out", f"{_N}.attention.dense"),
    **weight_and_bias("gate_up", f"{_N}.mlp.dense_h_to_4h"),
    **weight_and_bias("down", f"{_N}.mlp.dense_4h_to_h"),
}


def _gptj(json: Json) -> TransformerConfig:
    d_model, heads = json["n_embd"], json["n_head"]
    return TransformerConfig(
        vocab_size=json["vocab_size"],
        layers=json["n_layer"],
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_dim=d_model // heads,
        d_ff=json.get("n_inner") or 4 * d_model,
        context=json["n_positions"],
        rope_theta=1e4,
        norm_eps=json["layer_norm_epsilon"],
        tied_embeddings=json.get("tie_word_embeddings", False),
        activation=activation_of(json, "activation_function"),
        biases=("gate_up", "down", "head"),
        parallel=True,
        rotary_dim=json["rotary_dim"],
        **_GPT,
    )


_GPTJ_OUTER = {
    "embedding.weight": at("transformer.wte.weight"),
    **weight_and_bias("norm", "transformer.ln_f"),
    **weight_and_bias("head", "lm_head"),
}
_GPTJ_BLOCK = {
    **weight_and_bias("attention_norm", f"{_H}.ln_1"),
    **weight_and_bias("mlp_norm", f"{_H}.ln_1"),  # one norm for both
    "qkv.weight": Source(tuple(f"{_H}.attn.{x}_proj.weight" for x in "qkv"), neighbours_apart),
    "out.weight": at(f"{_H}.attn.out_proj.weight"),
    **weight_and_bias("gate_up", f"{_H}.mlp.fc_in"),
    **weight_and_bias("down", f"{_H}.mlp.fc_out"),
}


GPT2 = Family(_gpt2, _GPT2_OUTER, _GPT2_BLOCK)
GPT_NEOX = Family(_neox, _NEOX_OUTER, _NEOX_BLOCK)
GPT_J = Family(_gptj, _GPTJ_OUTER, _GPTJ_BLOCK)
