"""Drafts change how soon a reply comes, never what it says."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch

from soma_agents.language import decoder as decoder_module
from soma_agents.language import linear as linear_module
from soma_agents.language.architecture import PROJECTIONS
from soma_agents.language.cache import BatchCache, PromptCache
from soma_agents.language.decoder import Decoder
from soma_agents.language.drafts import MOST_ROWS, Drafter, worthwhile
from soma_agents.language.engine import Engine
from soma_agents.language.lora import LoraConfig
from soma_agents.language.mixed_lora import MixedLora, PackedLora
from soma_agents.language.model import load_model
from soma_agents.language.native import kernels
from soma_agents.language.prefixes import CHUNK, PIECE
from soma_agents.language.requests import Finished, GenerationRequest
from soma_agents.language.sampling import Sampling
from soma_agents.language.sou.convert import save_model
from soma_agents.language.transformer import Transformer

needs_kernels = pytest.mark.skipif(
    kernels() is None, reason="the kernels are not compiled, or not for this processor"
)
ROUND = (9, 30, 31, 32, 33, 34) * 6
PROMPTS = [ROUND, (5, 6, 7) * 9, tuple(range(40, 90)) * 2, (7,)]


@pytest.fixture(params=[pytest.param("ours", marks=needs_kernels), "torch's"])
def whose(request, monkeypatch):
    """Products by our kernels, or as where there are none."""
    if request.param != "ours":
        for module in (linear_module, decoder_module):
            monkeypatch.setattr(module, "kernels", lambda: None)
    return request.param


@pytest.fixture(scope="module")
def stored(tiny, make_config, tmp_path_factory):
    """A file of a random model that repeats itself, as small models do."""
    config = make_config(d_ff=128, vocab_size=320, heads=2, kv_heads=1, head_dim=32)
    transformer = Transformer.random(config, seed=3).requires_grad_(requires_grad=False)
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.mul_(3 if weight.dim() > 1 else 1)
    path = tmp_path_factory.mktemp("drafts") / "small.sou"
    save_model(path, replace(tiny, config=config, transformer=transformer), "Q8")
    return path


def packed(make_adapter, config, seed, rank, targets=PROJECTIONS) -> PackedLora:
    """An adapter that changes what the model says."""
    lora = LoraConfig(rank=rank, alpha=2 * rank, targets=targets)
    return PackedLora(make_adapter(config, seed, lora), torch.bfloat16)


@torch.inference_mode()
def step_of(model, lora, *, stacked) -> torch.Tensor:
    """Logits of a step of four rows of two sequences, through all blocks at once or one by one."""
    decoder, cache = Decoder(model), BatchCache(model.config, torch.bfloat16)
    if not stacked:
        decoder._stack = None  # as for a model of another family
    for length in (70, 3):
        prompt = PromptCache(model.config, length, torch.bfloat16)
        model.transformer.hidden(torch.arange(length)[None], cache=prompt)
        cache.join(prompt)
    return decoder.step([[5, 6, 7], [8]], cache, lora)


@pytest.fixture
def small(stored, whose):
    assert whose
    return load_model(str(stored))


@pytest.fixture
async def both(small, make_adapter, tmp_path):
    """An engine with drafts, and one without; both know adapters a and b."""
    engines = [Engine(small, slots=4, threads=1, drafts=drafts) for drafts in (True, False)]
    for engine in engines:
        engine.start()
        for seed, name in enumerate("ab"):
            make_adapter(small.config, seed).save(tmp_path / name, small.id)
            await engine.load_adapter(name, tmp_path / name)
    yield engines
    for engine in engines:
        await engine.close()


def request_for(prompt, *, adapter=None, shared=0, **sampling) -> GenerationRequest:
    settings = {"temperature": 0, "max_tokens": 50} | sampling
    return GenerationRequest(tuple(prompt), Sampling(**settings), adapter, "local", shared)


async def told(engine, request):
    """Every piece, and how it ended but for the times."""
    items = [item async for item in engine.generate(request)]
    assert isinstance(items[-1], Finished)
    return items[:-1], (items[-1].reason, items[-1].completion_tokens)


async def all_told(engine, requests):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(told(engine, request)) for request in requests]
    return [task.result() for task in tasks]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7, "top_p": 0.95, "seed": 5},
        {"temperature": 1.0, "seed": 6},
        {"temperature": 1.0, "top_k": 3, "seed": 6},
        {"temperature": 0.5, "min_p": 0.1, "seed": 7, "logprobs": 3},
        {"repetition_penalty": 1.02},
        {"temperature": 0.3, "seed": 3, "repetition_penalty": 1.01},
        {"logprobs": 2},
        {"stop": ("e", "\n", "ab"), "temperature": 0.3, "seed": 1},
        *({"max_tokens": tokens} for tokens in range(1, 7)),
        {"max_tokens": 1000},
    ],
    ids=str,
)
async def test_a_reply_is_piece_for_piece_the_same_with_drafts(both, settings):
    requests = [request_for(prompt, **settings) for prompt in PROMPTS]

    alone = [[await told(engine, request) for request in requests] for engine in both]
    together = [await all_told(engine, requests) for engine in both]

    assert alone[0] == alone[1] == together[0] == together[1]


async def test_what_repeats_itself_takes_fewer_steps(both):
    for engine in both:
        await told(engine, request_for(ROUND, max_tokens=100))

    with_drafts, without = (engine.stats() for engine in both)

    assert with_drafts.completion_tokens == without.completion_tokens
    assert with_drafts.steps < without.steps / 2


async def test_adapters_beside_each_other_say_the_same_with_drafts(both):
    requests = [
        request_for(prompt, adapter=adapter)
        for prompt, adapter in zip(PROMPTS, ("a", None, "b", "a"), strict=True)
    ]

    drafted, plain = [await all_told(engine, requests) for engine in both]

    assert drafted == plain


async def test_a_reply_after_a_kept_beginning_is_the_same_with_drafts(both):
    requests = [request_for((*ROUND, last), shared=len(ROUND)) for last in (9, 30, 9)]

    drafted, plain = [[await told(engine, request) for request in requests] for engine in both]

    assert drafted == plain


async def test_what_prompts_begin_with_alike_is_read_once_and_says_the_same(both, small):
    requests = [request_for((*ROUND, 5, last), max_tokens=12) for last in (9, 30, 7)]
    fresh = [await told(both[1], request) for request in requests[1:]]
    await told(both[0], requests[0])
    read = both[0].stats().prompt_tokens

    again = await all_told(both[0], requests[1:])

    assert again == fresh
    kept = len(ROUND) // PIECE * PIECE if Decoder(small).read_alike >= CHUNK else 0
    assert both[0].stats().prompt_tokens - read == 2 * (len(ROUND) + 2 - kept)


async def test_who_is_cancelled_in_the_middle_of_drafts_harms_nobody(both):
    request = request_for((5, 6, 7) * 9, max_tokens=120)
    alone = await told(both[1], request)

    async with aclosing(both[0].generate(request_for(ROUND, max_tokens=200))) as gone:
        await anext(gone)
        running = asyncio.create_task(told(both[0], request))
        await anext(gone)

    assert await running == alone


@pytest.mark.parametrize("window", [0, 24])
@pytest.mark.usefixtures("whose")
def test_a_drafted_row_has_bit_for_bit_the_logits_of_a_step_of_its_own(small, make_adapter, window):
    config = replace(small.config, window=window)
    model = replace(small, config=config)
    adapters = [packed(make_adapter, config, 1, 4), None, packed(make_adapter, config, 2, 20)]
    runs = [[5, 6, 7, 8], [9], [10, 11]]
    decoder, caches = Decoder(model), [BatchCache(config, torch.bfloat16) for _ in range(2)]
    with torch.inference_mode():
        for length in (61, 20, 90):
            prompt = PromptCache(config, length, torch.bfloat16)
            model.transformer.hidden(torch.arange(length)[None] % 250, cache=prompt)
            for cache in caches:
                cache.join(prompt)

        for lora in (None, adapters):
            rows = lora and MixedLora([lora[row] for row, run in enumerate(runs) for _ in run])
            together = decoder.step(runs, caches[0], rows)

            single = []
            for row, run in enumerate(runs):
                for token in run:
                    news = [[token] if row == other else [0] for other in range(3)]
                    logits = decoder.step(news, caches[1], lora and MixedLora(lora))
                    single.append(logits[row])
                    caches[1].keep(row, 1)
                caches[1].keep(row, -len(run))
            assert torch.equal(together, torch.stack(single))


@needs_kernels
def test_all_blocks_in_one_call_compute_what_they_do_one_by_one(stored):
    model = load_model(str(stored))

    stacked, single = (step_of(model, None, stacked=stacked) for stacked in (True, False))

    assert torch.equal(stacked, single)


@needs_kernels
@pytest.mark.parametrize("targets", [PROJECTIONS, ("k_proj", "up_proj"), ("down_proj",)])
def test_adapters_in_one_call_compute_what_torch_does(stored, make_adapter, targets):
    model = load_model(str(stored))
    small, large = (packed(make_adapter, model.config, rank, rank, targets) for rank in (3, 20))
    rows = [small, large, small, None]

    stacked, single = (
        step_of(model, MixedLora(rows), stacked=stacked) for stacked in (True, False)
    )

    base = step_of(model, None, stacked=True)
    assert (stacked - single).abs().max() <= 0.03 * base.abs().max()
    assert torch.equal(stacked[3], base[3])
    for row in range(3):
        assert (stacked - base)[row].abs().max() > 0.1 * base.abs().max()


def test_dense_products_and_fp32_draft_nothing(tiny, stored):
    assert not Decoder(tiny).same_in_any_company
    assert not Decoder(load_model(str(stored), dtype=torch.float32)).same_in_any_company


def drafter(tokens) -> Drafter:
    return Drafter(tuple(tokens))


@pytest.mark.parametrize(
    ("tokens", "guess"),
    [
        ([1, 2, 3, 4, 9, 1, 2], [3, 4, 9]),
        ([1, 2, 3, 8, 1, 2, 4, 8, 1, 2], [4, 8, 1]),  # the latest of equals
        ([4, 5, 1, 2, 3, 6, 1, 2, 4, 5, 1, 2], [3, 6, 1]),  # where four stood before
        ([1, 2, 1, 2], [1, 2, 1]),
        ([7, 7, 7], [7, 7, 7]),
        ([1, 2, 3, 4], []),
        ([1, 2, 3, 2], []),  # one token alone says little
        ([1], []),
    ],
)
def test_what_followed_the_last_tokens_before_is_the_guess(tokens, guess):
    assert drafter(tokens).guess(3) == guess


def test_pushed_tokens_are_looked_up_too():
    found = drafter([1, 2])

    for token in (3, 4, 1, 2):
        found.push(token)

    assert found.guess(2) == [3, 4]


def test_a_draft_shrinks_to_nothing_where_it_was_wrong_and_grows_where_it_was_right():
    right, wrong = (drafter([1, 2, 3, 4, 5, 6, 7, 8] * 3) for _ in range(2))

    for step in range(20):
        for found in (right, wrong):
            found.guess(4)
        right.push(step % 8 + 1)
        wrong.push((1, 2, 100 + step)[step % 3])

    assert len(worthwhile([(right, 50)], 8)[0]) >= 7
    assert len(worthwhile([(wrong, 50)], 8)[0]) <= 1


def test_less_is_drafted_where_each_row_costs_more():
    few, many = (len(worthwhile([(drafter(ROUND), 50)], fixed)[0]) for fixed in (1, 8))

    assert few < many


@pytest.mark.parametrize("streams", range(1, 20))
def test_a_step_has_few_rows_however_much_there_is_to_draft(streams):
    drafts = worthwhile([(drafter(ROUND), 50) for _ in range(streams)], 8)

    assert streams + sum(map(len, drafts)) <= max(streams, MOST_ROWS)


def test_no_more_is_drafted_than_the_reply_may_have():
    assert worthwhile([(drafter(ROUND), 0)], 8) == [[]]
    assert len(worthwhile([(drafter(ROUND), 2)], 8)[0]) <= 2


@needs_kernels
@pytest.mark.parametrize("adapted", [False, True])
def test_a_prompt_read_through_the_blocks_is_read_as_by_torch(stored, make_adapter, adapted):
    model = load_model(str(stored))
    decoder, prompt = Decoder(model), tuple(range(7, 7 + 100))
    lora = packed(make_adapter, model.config, 2, 4) if adapted else None
    caches = [PromptCache(model.config, len(prompt), torch.bfloat16) for _ in range(3)]

    with torch.inference_mode():
        whole = decoder.read(prompt, caches[0], lora)
        decoder.read(prompt[:33], caches[1], lora)
        parted = decoder.read(prompt[33:], caches[1], lora)
        decoder._stack = None
        dense = decoder.read(prompt, caches[2], lora)

    assert torch.equal(whole, parted)
    assert all(torch.equal(a, b) for a, b in zip(caches[0].layers, caches[1].layers, strict=True))
    assert (whole - dense).abs().max() <= 0.05 * dense.abs().max()
    assert [cache.length for cache in caches] == [100] * 3
