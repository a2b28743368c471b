"""A tiny random model as a GGUF file, one token a byte, and datasets small enough for it."""

from datetime import UTC, datetime
from pathlib import Path

import gguf
import numpy as np

from arbiters.events import ChatMessage
from arbiters.records import Example
from soma_agents.language.source import base_id
from soma_agents.language.tokenizer import ALPHABET
from soma_agents.settings import Settings, load_settings
from soma_agents.storage.datasets import FileDatasetWriter

LAYERS, WIDTH, HEADS, KV_HEADS, FF, CONTEXT = 2, 32, 4, 2, 64, 1024
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(path):
    """Random weights, the same every time."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "llama.block_count": LAYERS,
        "llama.embedding_length": WIDTH,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.feed_forward_length": FF,
        "llama.context_length": CONTEXT,
        "tokenizer.ggml.eos_token_id": 1,
    }.items():
        writer.add_uint32(key, value)
    writer.add_float32("llama.rope.freq_base", 10_000.0)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    # One merge, since an empty array has no type in GGUF.
    tokens = ["<|im_start|>", "<|im_end|>", *ALPHABET, "qz"]
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [3, 3] + [1] * (len(tokens) - 2))
    writer.add_array("tokenizer.ggml.merges", ["q z"])
    writer.add_string("tokenizer.ggml.pre", "gpt-2")
    writer.add_string("tokenizer.chat_template", TEMPLATE)
    _add_weights(writer, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_weights(writer, vocabulary):
    random = np.random.default_rng(1)
    kv = WIDTH // HEADS * KV_HEADS
    shapes = {"token_embd.weight": (vocabulary, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_q.weight": (WIDTH, WIDTH),
            f"blk.{layer}.attn_k.weight": (kv, WIDTH),
            f"blk.{layer}.attn_v.weight": (kv, WIDTH),
            f"blk.{layer}.attn_output.weight": (WIDTH, WIDTH),
            f"blk.{layer}.ffn_gate.weight": (FF, WIDTH),
            f"blk.{layer}.ffn_up.weight": (FF, WIDTH),
            f"blk.{layer}.ffn_down.weight": (WIDTH, FF),
        }
    for name, shape in shapes.items():
        # Embeddings are the head, too: too small ones could never be sure of a token.
        scale = 0.5 if name == "token_embd.weight" else 0.1
        writer.add_tensor(name, (random.normal(size=shape) * scale).astype(np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))


def tiny_settings(tmp_path, **sections) -> Settings:
    """Settings of a home whose engine runs the tiny model."""
    path = tmp_path / "tiny.gguf"
    if not path.exists():
        write_tiny_model(path)
    training = {
        "rank": 4,
        "alpha": 8,
        "learning_rate": 1e-2,
        "batch_tokens": 512,
        "epochs": 2,
        "context": 256,
        "rehearsal_share": 0.1,
    }
    return load_settings(
        tmp_path / "home",
        environ={},
        overrides={
            "engine": {"model": str(path), "dtype": "float32"} | sections.pop("engine", {}),
            "training": training | sections.pop("training", {}),
            **sections,
        },
    )


def tiny_base(settings):
    return base_id(Path(settings.engine.model))


def example(name, question, reply, *, group=None, rejected=None) -> Example:
    return Example(
        id=name,
        kind="imported" if rejected is None else "preference",
        messages=(
            ChatMessage(role="user", content=question),
            ChatMessage(role="assistant", content=reply),
        ),
        group=group or name,
        events=(f"event-{name}",),
        user="owner",
        trust="imported",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        rejected=rejected,
    )


def echoes(side, count, *, reply="yes, {n} it is"):
    """Conversations that are easy to learn."""
    return [example(f"{side}-{n}", f"is it {n}?", reply.format(n=n)) for n in range(count)]


async def write_dataset(settings, **splits):
    """A dataset in the home; splits that are not named are empty."""
    whole = {"train": [], "validation": [], "heldout": []} | splits
    return await FileDatasetWriter(settings.home / "datasets").write(whole, {})
