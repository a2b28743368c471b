import json

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaForCausalLM

from arbiters.errors import CorruptError, InvalidError, NotFoundError
from soma_agents.language.checkpoint import open_checkpoint
from soma_agents.language.hub.build import build
from soma_agents.language.hub.source import open_source, write_for
from soma_agents.language.model import load_model
from soma_agents.language.sou.convert import convert
from soma_agents.language.transformer import weight_shapes
from tests.tiny_models import write_tiny_model

TOKENS = torch.arange(2, 42)[None]
TEXT = "héllo qz!\n12 <|im_end|>"


@pytest.fixture
def tiny_sou(tmp_path):
    target = tmp_path / "tiny.sou"
    convert(open_checkpoint(write_tiny_model(tmp_path / "tiny.gguf")), target, "F32")
    return target


def test_transformers_reads_what_was_exported_and_computes_the_same(tiny_sou, tmp_path):
    ours = load_model(str(tiny_sou)).transformer.float()

    write_for(open_source(str(tiny_sou)), tmp_path / "out", "transformers", "")

    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.inference_mode():
        assert (ours(TOKENS) - theirs(TOKENS).logits).abs().max() < 1e-4


def test_transformers_reads_the_exported_tokenizer_and_template(tiny_sou, tmp_path):
    ours = load_model(str(tiny_sou)).tokenizer

    write_for(open_source(str(tiny_sou)), tmp_path / "out", "transformers", "")

    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.encode(TEXT, add_special_tokens=False) == ours.encode(TEXT)
    assert theirs.eos_token_id == ours.eos_ids[0]
    assert theirs.chat_template == ours.template


def test_what_was_exported_comes_back_the_same(tiny_sou, tmp_path):
    write_for(open_source(str(tiny_sou)), tmp_path / "out", "transformers", "")

    again = open_source(str(tmp_path / "out"))

    first = open_source(str(tiny_sou))
    assert again.config == first.config
    for name in ("embedding.weight", "blocks.1.qkv.weight", "blocks.0.gate_up.weight"):
        assert torch.equal(
            again.tensor(name, torch.float32), first.tensor(name, torch.bfloat16).float()
        )
    assert again.tokenizer().template == first.tokenizer().template
    assert again.tokenizer().eos_ids == first.tokenizer().eos_ids


@pytest.mark.parametrize(("kind", "worst"), [("F16", 0.01), ("Q8_0", 0.5)])
def test_a_gguf_export_is_read_back_by_our_own_reader(tiny_sou, tmp_path, kind, worst):
    ours = load_model(str(tiny_sou), dtype=torch.float32)

    model, modelfile = write_for(open_source(str(tiny_sou)), tmp_path / "out", "gguf", kind)

    again = load_model(str(model), dtype=torch.float32)
    with torch.inference_mode():
        assert (again.transformer(TOKENS) - ours.transformer(TOKENS)).abs().max() < worst
    assert again.tokenizer.encode(TEXT) == ours.tokenizer.encode(TEXT)
    assert again.tokenizer.template == ours.tokenizer.template
    assert again.config == ours.config
    assert gguf.GGUFReader(model).get_field("general.architecture").contents() == "llama"
    assert modelfile.read_text() == 'FROM ./model.gguf\nPARAMETER stop "<|im_end|>"\n'


def test_a_modelfile_for_ollama_says_what_the_text_form_said(tiny_sou, tmp_path):
    said = f'FROM {tiny_sou.name}\nPARAMETER temperature 0.5\nPARAMETER max_tokens 9\nSYSTEM "Be brief."\n'
    (tmp_path / "form").write_text(said)
    build(tmp_path / "form", tmp_path / "built.sou", "F16")

    _, modelfile = write_for(open_source(str(tmp_path / "built.sou")), tmp_path, "gguf", "F16")

    assert modelfile.read_text().splitlines()[1:] == [
        "PARAMETER temperature 0.5",
        "PARAMETER num_predict 9",
        'PARAMETER stop "<|im_end|>"',
        'SYSTEM """Be brief."""',
    ]


def test_formats_that_are_not_known_are_refused(tiny_sou, tmp_path):
    source = open_source(str(tiny_sou))

    with pytest.raises(InvalidError, match="no format 'onnx'"):
        write_for(source, tmp_path / "out", "onnx", "")
    with pytest.raises(InvalidError, match="no GGUF type 'Q3'"):
        write_for(source, tmp_path / "out", "gguf", "Q3")


def test_a_text_form_that_names_what_is_not_there_is_refused(tiny_sou, tmp_path):
    form, base = tmp_path / "form", f"FROM {tiny_sou.name}\n"

    for text in ("FROM absent.sou", f"{base}RAG absent", f"{base}ADAPTER absent"):
        form.write_text(text)
        with pytest.raises(NotFoundError, match="absent"):
            build(form, tmp_path / "x.sou", "F16")

    assert not (tmp_path / "x.sou").exists()


@pytest.mark.parametrize("text", ["[", "[]", '{"model_type": "llama"}', '{"model_type": 3}'])
def test_a_configuration_that_is_none_is_refused(tiny_sou, tmp_path, text):
    write_for(open_source(str(tiny_sou)), tmp_path / "out", "transformers", "")

    (tmp_path / "out" / "config.json").write_text(text)

    with pytest.raises((CorruptError, InvalidError)):
        open_source(str(tmp_path / "out"))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)
@given(data=st.data())
def test_a_mutated_configuration_ends_in_our_errors_or_in_a_model(tiny_sou, tmp_path, data):
    config = tmp_path / "out" / "config.json"
    if not config.exists():
        write_for(open_source(str(tiny_sou)), tmp_path / "out", "transformers", "")
        config.rename(tmp_path / "kept.json")
    said = json.loads((tmp_path / "kept.json").read_text())
    key = data.draw(st.sampled_from(sorted(said)))
    values = [
        None,
        "x",
        "",
        -1,
        0,
        3,
        2**63,
        1.5,
        1e308,
        [],
        {},
        [1],
        True,
        "mistral",
        "gemma3_text",
    ]
    said[key] = data.draw(st.sampled_from(values))
    config.write_text(json.dumps(said))

    try:
        source = open_source(str(tmp_path / "out"))
        expected = weight_shapes(source.config)
        shapes = {name: tuple(source.tensor(name, torch.float32).shape) for name in expected}
        source.tokenizer()
    except (CorruptError, InvalidError):
        return

    assert shapes == expected
