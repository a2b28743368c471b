"""Every table against `transformers` on a small model of random weights."""

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from arbiters.errors import CorruptError, InvalidError, NotFoundError
from soma_agents.language.cache import BatchCache, PromptCache
from soma_agents.language.decoder import Decoder
from soma_agents.language.hub.source import open_source
from soma_agents.language.model import LanguageModel
from soma_agents.language.sou.checkpoint import SouCheckpoint
from soma_agents.language.sou.convert import planned
from soma_agents.language.sou.writer import Draft, write_sou
from soma_agents.language.transformer import Transformer, weight_shapes

LLAMA = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**LLAMA, tie_word_embeddings=False)),
    "mistral": (MistralForCausalLM, MistralConfig(**LLAMA, sliding_window=7, head_dim=16)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**LLAMA, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**LLAMA, head_dim=16)),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **LLAMA,
            head_dim=16,
            sliding_window=5,
            query_pre_attn_scalar=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig(**LLAMA, num_local_experts=5, num_experts_per_tok=2),
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**GPT)),
    "gpt_neox": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig(**{k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}),
    ),
    "gpt_neox in turn": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig(
            **{k: v for k, v in LLAMA.items() if k != "num_key_value_heads"},
            use_parallel_residual=False,
        ),
    ),
    "gptj": (GPTJForCausalLM, GPTJConfig(**GPT, rotary_dim=4)),
}


@pytest.fixture
def saved(tmp_path):
    """Write a random model of a family and return it with its directory."""

    def save(name):
        kind, config = FAMILIES[name]
        torch.manual_seed(1)
        model = kind(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                # Biases and norms, too: zeros and ones would hide a mistake.
                weight.add_(torch.randn(weight.shape) * 0.1)
        model.save_pretrained(tmp_path / "theirs")
        return model, tmp_path / "theirs"

    return save


def loaded(checkpoint):
    config = checkpoint.config
    weights = {name: checkpoint.tensor(name, torch.float32) for name in weight_shapes(config)}
    return Transformer.from_weights(config, weights)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_the_logits_that_transformers_computes(saved, name):
    theirs, directory = saved(name)
    tokens = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(0))

    ours = loaded(open_source(str(directory)))

    with torch.inference_mode():
        expected = theirs(tokens).logits
        assert expected.std() > 0.1
        assert (ours(tokens) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_step_by_step_gives_the_logits_of_the_whole(saved, name):
    _, directory = saved(name)
    transformer = loaded(open_source(str(directory)))
    config = transformer.config
    model = LanguageModel("base-x", "x", config, transformer, None)
    tokens = torch.randint(0, 96, (1, 30), generator=torch.Generator().manual_seed(0))

    with torch.inference_mode():
        whole = transformer(tokens)[0]
        prompt = PromptCache(config, 12, torch.float32)
        transformer.hidden(tokens[:, :8], cache=prompt)
        transformer.hidden(tokens[:, 8:12], cache=prompt)
        cache = BatchCache(config, torch.float32)
        cache.join(prompt)
        decoder = Decoder(model)
        steps = []
        for token in tokens[0, 12:].tolist():
            steps.append(decoder.step([[token]], cache, None)[0])
            cache.keep(0, 1)

    assert (torch.stack(steps) - whole[12:]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["gemma3", "gptj", "mixtral"])
def test_a_family_keeps_its_logits_in_a_sou_file(saved, name, tmp_path):
    _, directory = saved(name)
    source = open_source(str(directory))
    tokens = torch.arange(20)[None]

    tensors = planned(source.config, "F32", lambda part: source.tensor(part, torch.float32))
    write_sou(tmp_path / "x.sou", Draft(source.config, tensors))

    again = loaded(SouCheckpoint(tmp_path / "x.sou"))
    with torch.inference_mode():
        assert torch.equal(again(tokens), loaded(source)(tokens))


def test_an_unknown_architecture_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')

    with pytest.raises(InvalidError, match="'mamba'; known are llama"):
        open_source(str(tmp_path))


def test_settings_that_no_table_maps_are_refused(saved):
    _, directory = saved("llama")
    config = directory / "config.json"

    text = config.read_text().replace('"attention_bias": false', '"attention_bias": true')
    config.write_text(text)

    with pytest.raises(InvalidError, match="attention_bias is True"):
        open_source(str(directory))


def test_a_configuration_that_its_tensors_do_not_bear_out_is_refused(saved):
    _, directory = saved("qwen2")
    config = directory / "config.json"

    config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 64'))

    with pytest.raises(CorruptError, match="the configuration says"):
        loaded(open_source(str(directory)))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, missing):
    _, directory = saved("llama")

    (directory / missing).unlink()

    with pytest.raises(NotFoundError, match=missing.removeprefix("model")):
        open_source(str(directory))
