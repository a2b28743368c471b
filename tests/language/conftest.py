"""Models for the tests: a tiny random one with a byte vocabulary, and the real one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from soma_agents.language.lora import LoraAdapter, LoraConfig
from soma_agents.language.model import LanguageModel, load_model
from soma_agents.language.tokenizer import ALPHABET, ChatTokenizer
from soma_agents.language.transformer import Transformer, TransformerConfig

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_config(**changes) -> TransformerConfig:
    sizes = {
        "vocab_size": 258,
        "layers": 2,
        "d_model": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "d_ff": 96,
        "context": 256,
        "rope_theta": 10_000.0,
        "norm_eps": 1e-5,
        "tied_embeddings": True,
    }
    return TransformerConfig(**(sizes | changes))


def byte_metadata() -> dict:
    """What a GGUF file would say of a tokenizer with one token a byte."""
    tokens = ["<|im_start|>", "<|im_end|>", *ALPHABET]
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * len(ALPHABET),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": TEMPLATE,
    }


@pytest.fixture(scope="session")
def make_config() -> Callable[..., TransformerConfig]:
    return tiny_config


@pytest.fixture
def metadata() -> dict:
    return byte_metadata()


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    config = tiny_config()
    transformer = Transformer.random(config, seed=1).requires_grad_(requires_grad=False).eval()
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.mul_(5 if weight.dim() > 1 else 1)  # so that tokens differ clearly
    return LanguageModel("base-tiny", "tiny", config, transformer, ChatTokenizer(byte_metadata()))


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., LoraAdapter]:
    """An adapter that changes what the model says."""

    def make(config: TransformerConfig, seed: int, lora: LoraConfig | None = None) -> LoraAdapter:
        adapter = LoraAdapter.create(lora or LoraConfig(rank=4, alpha=8), config, seed)
        generator = torch.Generator().manual_seed(seed + 1000)
        with torch.no_grad():
            for up in adapter.b.values():
                up.normal_(0, 0.1, generator=generator)
        return adapter.eval()

    return make


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def smollm2_fp32() -> LanguageModel:
    return load_model("smollm2", dtype=torch.float32)


@pytest.fixture(scope="session")
def smollm2_bf16() -> LanguageModel:
    return load_model("smollm2")


@pytest.fixture(scope="session")
def smollm2_path(smollm2_fp32) -> Path:
    return smollm2_fp32.path
