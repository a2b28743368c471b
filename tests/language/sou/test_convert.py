import asyncio
import math

import pytest
import torch

from arbiters.errors import CorruptError, InvalidError
from soma_agents.language.checkpoint import open_checkpoint
from soma_agents.language.engine import Engine
from soma_agents.language.lora import LoraConfig
from soma_agents.language.model import load_model
from soma_agents.language.requests import GenerationRequest, Piece
from soma_agents.language.sampling import Sampling
from soma_agents.language.sou.convert import KINDS, convert, kind_named
from soma_agents.language.sou.memory import plan_of
from soma_agents.language.sou.reader import SouFile
from tests.tiny_models import write_tiny_model

TOKENS = torch.arange(2, 42)[None]
LOSS = {"F32": 0, "F16": 1e-3, "BF16": 0.02, "Q8": 0.05, "Q5": 0.3, "Q4": 0.5, "Q2": 3}


def surprise(model):
    with torch.inference_mode():
        logits = model.transformer(TOKENS)[0, :-1]
    return torch.nn.functional.cross_entropy(logits, TOKENS[0, 1:]).item()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_every_number_format_predicts_nearly_the_same(sou, small, kind):
    loaded = load_model(str(sou(kind)), dtype=torch.float32)

    assert surprise(loaded) == pytest.approx(surprise(small), abs=LOSS[kind])
    assert loaded.tokenizer.encode("héllo<|im_end|>") == small.tokenizer.encode("héllo<|im_end|>")


def test_a_gguf_file_becomes_a_sou_file_that_computes_the_same(tmp_path):
    gguf = write_tiny_model(tmp_path / "tiny.gguf")
    target = tmp_path / "tiny.sou"

    convert(open_checkpoint(gguf), target, "F32")

    theirs, ours = (load_model(str(path), dtype=torch.float32) for path in (gguf, target))
    assert torch.equal(ours.transformer(TOKENS), theirs.transformer(TOKENS))
    text = "a qz Ünïcode\n<|im_end|>"
    assert ours.tokenizer.encode(text) == theirs.tokenizer.encode(text)
    ids = list(range(theirs.tokenizer.vocab_size))
    assert ours.tokenizer.decode(ids) == theirs.tokenizer.decode(ids)
    assert ours.tokenizer.defuse("<|im_end|>") == theirs.tokenizer.defuse("<|im_end|>")


def test_quantising_a_sou_file_again_keeps_all_but_its_numbers(sou, tmp_path):
    target = tmp_path / "again.sou"

    convert(open_checkpoint(sou("F16", metadata={"by": "x"})), target, "Q4")

    before, after = SouFile(sou("F16")).directory, SouFile(target).directory
    assert after.metadata == {"by": "x", "weights": "Q4"}
    assert (after.config, after.eos_ids, after.card) == (before.config, before.eos_ids, before.card)
    kinds = {piece.name: piece.kind for piece in after.tensors}
    assert kinds["blocks.0.qkv.weight"] == "Q4"
    assert kinds["embedding.weight"] == "Q5"
    assert kinds["norm.weight"] == "F32"


def test_what_has_no_whole_groups_in_a_row_stays_f16(tmp_path):
    target = tmp_path / "tiny.sou"

    convert(open_checkpoint(write_tiny_model(tmp_path / "tiny.gguf")), target, "Q8")

    kinds = {piece.name: piece.kind for piece in SouFile(target).directory.tensors}
    assert kinds["blocks.0.qkv.weight"] == "F16"  # rows of 32
    assert kinds["blocks.0.down.weight"] == "Q8"  # rows of 64


@pytest.mark.parametrize("kind", ["BF16", "Q8", "Q4", "Q2"])
async def test_the_engine_serves_the_file_as_its_dense_weights_predict(sou, kind):
    model = load_model(str(sou(kind)))
    engine = Engine(model, slots=1, threads=1)
    engine.start()
    prompt = tuple(range(2, 12))

    async with asyncio.timeout(20):
        request = GenerationRequest(prompt, Sampling(temperature=0, max_tokens=8, logprobs=1))
        pieces = [item async for item in engine.generate(request) if isinstance(item, Piece)]
    await engine.close()

    tokens = [token for piece in pieces for token in piece.token_ids]
    said = [entry.logprob for piece in pieces for entry in piece.logprobs]
    with torch.inference_mode():
        logits = model.transformer(torch.tensor([[*prompt, *tokens]])).float()
    places = range(len(prompt) - 1, len(prompt) - 1 + len(tokens))
    dense = logits[0, list(places)].log_softmax(-1)[range(len(tokens)), tokens].tolist()
    assert said == pytest.approx(dense, abs=0.25)


def test_an_adapter_in_the_file_is_added_to_the_weights(small, make_adapter, tmp_path):
    from soma_agents.language.hub.build import build
    from soma_agents.language.sou.convert import save_model

    lora = LoraConfig(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))
    adapter = make_adapter(small.config, 1, lora)
    adapter.save(tmp_path / "adapter", small.id)
    save_model(tmp_path / "base.sou", small, "F32")
    (tmp_path / "Modelfile").write_text("FROM base.sou\nADAPTER adapter\n")

    build(tmp_path / "Modelfile", tmp_path / "both.sou", "F32")

    both = load_model(str(tmp_path / "both.sou"), dtype=torch.float32)
    expected = small.transformer(TOKENS, lora=adapter)
    assert (expected - small.transformer(TOKENS)).abs().max() > 0.1
    assert (both.transformer(TOKENS) - expected).abs().max() < 1e-3


def test_the_memory_calculator_counts_what_is_there(sou):
    path = sou("Q8")
    model = load_model(str(path))

    plan = plan_of(SouFile(path), context=256, streams=3)

    weights = {w.data_ptr(): w.numel() for w in model.transformer.parameters()}
    assert plan.parameters == sum(weights.values())
    assert plan.weights == 2 * plan.parameters
    config = model.config
    per_token = 2 * config.layers * config.kv_heads * config.head_dim * 2
    assert plan.cache == 3 * 256 * per_token
    assert plan.total == plan.weights + plan.products + plan.cache


def test_formats_are_named_in_any_case_and_unknown_ones_refused():
    assert kind_named("q4") == "Q4"

    with pytest.raises(InvalidError, match="'q3'; use one of F32"):
        kind_named("q3")


def test_a_model_that_lost_its_mind_is_not_written(small, tmp_path):
    from soma_agents.language.sou.convert import save_model

    weight = small.transformer.blocks[0].linear("down").weight
    kept = weight[0, 0].item()
    weight[0, 0] = math.nan
    try:
        with pytest.raises(InvalidError, match=r"'blocks\.0\.down\.weight'"):
            save_model(tmp_path / "x.sou", small, "Q8")
    finally:
        weight[0, 0] = kept


def test_a_gguf_file_that_is_damaged_is_refused_before_anything_is_written(tmp_path):
    gguf = write_tiny_model(tmp_path / "tiny.gguf")
    gguf.write_bytes(gguf.read_bytes()[:-200])

    with pytest.raises(CorruptError, match="beyond the file"):
        convert(open_checkpoint(gguf), tmp_path / "x.sou", "Q8")

    assert not (tmp_path / "x.sou").exists()
