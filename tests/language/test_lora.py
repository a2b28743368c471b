import json

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from arbiters.errors import CorruptError, InvalidError, NotFoundError
from soma_agents.language.architecture import PROJECTIONS, SITES
from soma_agents.language.hub.to_transformers import their_parts, their_sizes
from soma_agents.language.lora import LoraAdapter, LoraConfig, adapter_id
from soma_agents.language.mixed_lora import MixedLora, PackedLora

# peft asks transformers in a way that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture
def reference(tiny):
    """The tiny model as the transformers library runs it."""
    model = LlamaForCausalLM(LlamaConfig(**their_sizes(tiny.config))).eval()
    weights = {}
    for name, weight in tiny.transformer.state_dict().items():
        weights |= their_parts(tiny.config, name, weight.clone())
    model.load_state_dict(weights)
    return model


def test_a_fresh_adapter_changes_nothing(tiny):
    adapter = LoraAdapter.create(LoraConfig(rank=4, alpha=8), tiny.config, seed=1)

    corrected = tiny.transformer(TOKENS, lora=adapter)
    assert torch.allclose(corrected, tiny.transformer(TOKENS), atol=1e-6)


def test_the_tiny_model_computes_what_transformers_computes(tiny, reference):
    with torch.no_grad():
        assert torch.allclose(tiny.transformer(TOKENS), reference(TOKENS).logits, atol=1e-4)


@pytest.mark.parametrize("targets", [PROJECTIONS, ("q_proj", "v_proj"), ("down_proj",)])
def test_peft_reads_what_we_save_and_computes_the_same(
    tiny, reference, make_adapter, tmp_path, targets
):
    adapter = make_adapter(tiny.config, 1, LoraConfig(rank=4, alpha=8, targets=targets))
    adapter.save(tmp_path, "base-tiny")

    theirs = PeftModel.from_pretrained(reference, tmp_path).eval()

    with torch.no_grad():
        logits = tiny.transformer(TOKENS, lora=adapter)
        assert torch.allclose(theirs(TOKENS).logits, logits, atol=1e-4)
        assert not torch.allclose(logits, tiny.transformer(TOKENS), atol=1e-2)


def test_we_read_what_peft_saves_and_compute_the_same(tiny, reference, tmp_path):
    config = PeftConfig(r=3, lora_alpha=5, target_modules=["q_proj", "o_proj", "up_proj"])
    theirs = get_peft_model(reference, config).eval()
    for name, weight in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    theirs.save_pretrained(tmp_path)

    adapter = LoraAdapter.load(tmp_path, tiny.config)

    with torch.no_grad():
        logits = tiny.transformer(TOKENS, lora=adapter)
        assert torch.allclose(theirs(TOKENS).logits, logits, atol=1e-4)


def test_only_the_adapter_learns(tiny):
    adapter = LoraAdapter.create(LoraConfig(rank=4, alpha=8), tiny.config, seed=1)

    tiny.transformer(TOKENS, lora=adapter).sum().backward()

    assert all(weight.grad is None for weight in tiny.transformer.parameters())
    assert all(up.grad.abs().sum() > 0 for up in adapter.b.values())


def test_each_row_of_a_batch_is_corrected_by_its_own_adapter(tiny, make_adapter):
    packed = [PackedLora(make_adapter(tiny.config, seed), torch.float32) for seed in (1, 2)]
    rows = [packed[0], None, packed[1], packed[0]]
    x, y = torch.randn(4, 64), torch.randn(4, 128)

    mixed = MixedLora(rows).correct(0, "qkv", x, y.clone())

    for row, adapter in enumerate(rows):
        delta = 0 if adapter is None else adapter.delta(0, "qkv", x[row : row + 1])[0]
        assert torch.allclose(mixed[row], y[row] + delta, atol=1e-5)


@pytest.mark.parametrize("site", SITES)
def test_a_packed_adapter_corrects_as_the_trained_one(tiny, make_adapter, site):
    adapter = make_adapter(
        tiny.config, 1, LoraConfig(rank=4, alpha=6, targets=("q_proj", "v_proj", "up_proj"))
    )
    x = torch.randn(2, 3, tiny.config.site_shape(site)[1])

    packed = PackedLora(adapter, torch.float32).delta(1, site, x)

    trained = adapter.delta(1, site, x)
    assert (packed is None) == (trained is None)
    assert packed is None or torch.allclose(packed, trained, atol=1e-5)


def test_the_same_adapter_has_the_same_id_wherever_it_lies(tiny, make_adapter, tmp_path):
    adapter = make_adapter(tiny.config, 1)
    adapter.save(tmp_path / "a", "base-tiny")
    adapter.save(tmp_path / "b", "base-tiny")

    first, second = (adapter_id(tmp_path / name, "base-tiny") for name in "ab")

    assert first == second
    assert adapter_id(tmp_path / "a", "base-other") != first


def test_saving_and_loading_keeps_every_number(tiny, make_adapter, tmp_path):
    adapter = make_adapter(tiny.config, 1)
    adapter.save(tmp_path, "base-tiny")

    loaded = LoraAdapter.load(tmp_path, tiny.config)

    assert loaded.config.rank == 4
    assert all(torch.equal(loaded.a[name], adapter.a[name]) for name in PROJECTIONS)
    assert all(torch.equal(loaded.b[name], adapter.b[name]) for name in PROJECTIONS)


@pytest.fixture
def saved(tiny, make_adapter, tmp_path):
    make_adapter(tiny.config, 1).save(tmp_path, "base-tiny")
    return tmp_path


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_an_adapter_with_broken_numbers_is_refused(tiny, saved, broken):
    path = saved / "adapter_model.safetensors"
    weights = load_file(path)
    weights[min(weights)][0, 0] = broken
    save_file(weights, path)

    with pytest.raises(CorruptError, match="NaN or infinity"):
        LoraAdapter.load(saved, tiny.config)


def test_an_adapter_cut_off_is_refused(tiny, saved):
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CorruptError, match="damaged"):
        LoraAdapter.load(saved, tiny.config)


def test_an_adapter_of_another_model_is_refused(saved, make_config):
    with pytest.raises(CorruptError, match="another model"):
        LoraAdapter.load(saved, make_config(d_ff=64))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"peft_type": "LORA"}', '{"peft_type": "IA3"}']
)
def test_a_damaged_configuration_is_refused(tiny, saved, content):
    (saved / "adapter_config.json").write_text(content)

    with pytest.raises(CorruptError, match="adapter_config"):
        LoraAdapter.load(saved, tiny.config)


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_dora", True), ("target_modules", ["lm_head"]), ("r", 0), ("bias", "all")],
)
def test_more_than_plain_lora_is_refused_by_name(tiny, saved, key, value):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    with pytest.raises(InvalidError):
        LoraAdapter.load(saved, tiny.config)


def test_a_missing_adapter_is_named(tiny, tmp_path):
    with pytest.raises(NotFoundError, match="absent"):
        LoraAdapter.load(tmp_path / "absent", tiny.config)


def test_a_mixture_of_experts_takes_adapters_of_its_attention_only(make_config):
    config = make_config(experts=4, experts_per_token=2)

    with pytest.raises(InvalidError, match="'down_proj': the model's MLPs are a mixture"):
        LoraAdapter.create(LoraConfig(rank=4, alpha=8), config, seed=1)

    LoraAdapter.create(LoraConfig(rank=4, alpha=8, targets=("q_proj", "o_proj")), config, seed=1)
