"""Export to GGUF and a Modelfile, as Ollama and llama.cpp read them.

Names and metadata: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType

from arbiters.errors import InvalidError
from soma_agents.language.architecture import SITES, TransformerConfig
from soma_agents.language.checkpoint import Checkpoint
from soma_agents.language.gguf_checkpoint import head_permutation, names_of
from soma_agents.language.hub.plain import refuse_other_families
from soma_agents.language.sou.card import Card
from soma_agents.language.tokenizer import CONTROL, ChatTokenizer
from soma_agents.language.transformer import weight_shapes

GgufKind = Literal["F16", "BF16", "Q8_0", "Q4_1", "Q4_0"]
ARCHITECTURE = "llama"
NORMAL = 1
"""Token type of all that is not control."""
PRE_TOKENIZERS = {"gpt-2": "gpt-2", "smollm": "smollm"}


def export_gguf(source: Checkpoint, target: Path, kind: GgufKind = "Q8_0") -> None:
    """Write a GGUF file. Matrices whose rows are no multiple of 32 and vectors stay fp32.

    Raises:
        InvalidError: the model is not of the LLaMA family, or its tokenizer no byte-level BPE.
    """
    refuse_other_families(source.config, "GGUF")
    partial = target.with_name(f".{target.name}.partial")
    writer = gguf.GGUFWriter(partial, ARCHITECTURE)
    _add_sizes(writer, source.config)
    _add_tokenizer(writer, source.tokenizer())
    for name in weight_shapes(source.config):
        _add_tensors(writer, source, name, GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)


def ollama_modelfile(gguf_name: str, card: Card, template_stop: str) -> str:
    """The Modelfile beside it: `ollama create NAME -f Modelfile`."""
    names = {"repetition_penalty": "repeat_penalty", "max_tokens": "num_predict"}
    lines = [f"FROM ./{gguf_name}"]
    given = card.parameters.model_dump(exclude_defaults=True)
    stops = (*given.pop("stop", ()), template_stop)
    lines += [f"PARAMETER {names.get(key, key)} {value}" for key, value in given.items()]
    lines += [f"PARAMETER stop {json.dumps(stop)}" for stop in dict.fromkeys(stops) if stop]
    if card.system:
        if '"""' in card.system:
            raise InvalidError("a SYSTEM text with triple quotes cannot stand in a Modelfile")
        lines.append(f'SYSTEM """{card.system}"""')
    return "\n".join(lines) + "\n"


def _add_sizes(writer: gguf.GGUFWriter, config: TransformerConfig) -> None:
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: ChatTokenizer) -> None:
    found = json.loads(tokenizer.to_json())
    model = found.get("model", {})
    if model.get("type") != "BPE" or "ByteLevel" not in str(found.get("pre_tokenizer")):
        raise InvalidError("only byte-level BPE tokenizers are written to GGUF")
    ids = dict(model["vocab"]) | {t["content"]: t["id"] for t in found.get("added_tokens", [])}
    control = {t["content"] for t in found.get("added_tokens", []) if t["special"]}
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise InvalidError("the tokenizer's ids have gaps; GGUF lists tokens without any")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if not merges:
        raise InvalidError("the tokenizer has no merges; a GGUF file cannot hold an empty list")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(found["pre_tokenizer"]))
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in control else NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_add_bos_token(value=False)
    if tokenizer.eos_ids:
        writer.add_eos_token_id(tokenizer.eos_ids[0])
    if tokenizer.template:
        writer.add_chat_template(tokenizer.template)


def _pre_tokenizer(found: dict[str, object]) -> str:
    """The name under which llama.cpp knows how text is cut into words."""
    kinds = [part["type"] for part in found.get("pretokenizers", [found])]  # pyright: ignore[reportGeneralTypeIssues]
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    raise InvalidError(f"GGUF has no name for text cut into words by {kinds!r}")


def _add_tensors(
    writer: gguf.GGUFWriter, source: Checkpoint, name: str, kind: GGMLQuantizationType
) -> None:
    weight = source.tensor(name, torch.float32)
    site = name.split(".")[-2]
    sizes = (
        [source.config.shape(part)[0] for part in SITES[site]] if site in SITES else [len(weight)]
    )
    for part, theirs in zip(weight.split(sizes), names_of(name), strict=True):
        rows = part
        if theirs.endswith(("attn_q.weight", "attn_k.weight")):
            rows = part[head_permutation(len(part), source.config.head_dim).argsort()]
        _add(writer, theirs, rows.numpy(), kind)


def _add(
    writer: gguf.GGUFWriter,
    name: str,
    values: npt.NDArray[np.float32],
    kind: GGMLQuantizationType,
) -> None:
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if values.ndim == 1 or values.shape[1] % block:
        kind = GGMLQuantizationType.F32
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
