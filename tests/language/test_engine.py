import asyncio
import os
from contextlib import aclosing

import pytest
import torch

from arbiters.errors import BusyError, InvalidError, NotFoundError, UnavailableError
from soma_agents.language.engine import Engine
from soma_agents.language.lora import LoraConfig
from soma_agents.language.prefixes import CHUNK
from soma_agents.language.requests import Finished, GenerationRequest, Piece
from soma_agents.language.sampling import Sampling
from soma_agents.language.scoring import bits_per_byte

PROMPTS = [tuple(range(2 + i, 6 + 9 * i)) for i in range(8)]


def greedy(
    prompt=(5, 6, 7), *, adapter=None, tenant="local", shared=0, **sampling
) -> GenerationRequest:
    settings = {"temperature": 0, "max_tokens": 20} | sampling
    return GenerationRequest(tuple(prompt), Sampling(**settings), adapter, tenant, shared)


async def answer(engine, request) -> tuple[list[int], str, Finished]:
    """All tokens, the text, and how it ended."""
    tokens, text = [], ""
    async for item in engine.generate(request):
        match item:
            case Piece():
                tokens += item.token_ids
                text += item.text
            case Finished():
                return tokens, text, item
    raise AssertionError("a reply ended without saying how")


async def answers(engine, requests) -> list[tuple[list[int], str, Finished]]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(engine, request)) for request in requests]
    return [task.result() for task in tasks]


@pytest.fixture
async def engine(tiny):
    engine = Engine(tiny, slots=8, threads=1)
    engine.start()
    yield engine
    await engine.close()


@pytest.fixture
async def adapted(engine, tiny, make_adapter, tmp_path):
    """The engine with adapters a and b."""
    for seed, name in enumerate("ab"):
        make_adapter(tiny.config, seed).save(tmp_path / name, tiny.id)
        await engine.load_adapter(name, tmp_path / name)
    return engine


def oracle(model, prompt, count, lora=None) -> list[int]:
    """Greedy tokens by reading everything again for each."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            token = int(model.transformer(torch.tensor([tokens]), lora=lora)[0, -1].argmax())
            if token in model.tokenizer.eos_ids:
                break
            tokens.append(token)
    return tokens[len(prompt) :]


async def test_a_reply_is_what_reading_everything_again_for_each_token_gives(engine, tiny):
    tokens, _, finished = await answer(engine, greedy(max_tokens=30))

    assert tokens == oracle(tiny, (5, 6, 7), 30)
    assert finished.prompt_tokens == 3
    assert 0 < finished.first_token_s <= finished.total_s


async def test_a_prompt_longer_than_a_chunk_is_read_the_same(engine, tiny):
    prompt = tuple(i % 250 + 2 for i in range(CHUNK + 30))

    tokens, _, _ = await answer(engine, greedy(prompt))

    assert tokens == oracle(tiny, prompt, 20)


async def test_the_next_turn_reads_only_what_is_new_and_says_the_same(tiny):
    engine = Engine(tiny, slots=2, threads=1)
    engine.start()
    turn = tuple(i % 250 + 2 for i in range(CHUNK + 10))
    tokens, _, _ = await answer(engine, greedy(turn, max_tokens=8))
    read = engine.stats().prompt_tokens
    follow_up = (*turn, *tokens, 9)

    again, _, _ = await answer(engine, greedy(follow_up))

    assert engine.stats().prompt_tokens - read == len(follow_up) - CHUNK
    assert again == oracle(tiny, follow_up, 20)
    await engine.close()


async def test_a_shared_beginning_is_read_once_and_says_the_same(tiny):
    engine = Engine(tiny, slots=2, threads=1)
    engine.start()
    system = tuple(i % 250 + 2 for i in range(40))
    first, second = (*system, 5, 6, 7), (*system, 8, 9)
    await answer(engine, greedy(first, shared=len(system)))
    read = engine.stats().prompt_tokens

    again, _, _ = await answer(engine, greedy(second, shared=len(system)))

    assert engine.stats().prompt_tokens - read == 2
    assert again == oracle(tiny, second, 20)
    await engine.close()


async def test_prefixes_are_never_shared_between_tenants_or_adapters(adapted):
    prompt = tuple(i % 250 + 2 for i in range(CHUNK + 10))
    requests = [
        greedy(prompt, tenant="a"),
        greedy(prompt, tenant="b"),
        greedy(prompt, tenant="a", adapter="a"),
    ]

    for request in requests:
        await answer(adapted, request)

    assert adapted.stats().prompt_tokens == 3 * len(prompt)


async def test_requests_decoded_together_get_the_tokens_they_get_alone(engine):
    requests = [greedy(prompt, max_tokens=15 + i) for i, prompt in enumerate(PROMPTS)]
    alone = [await answer(engine, request) for request in requests]

    together = await answers(engine, requests)

    assert [tokens for tokens, _, _ in together] == [tokens for tokens, _, _ in alone]


async def test_base_and_adapters_in_one_batch_give_the_tokens_they_give_alone(adapted):
    requests = [
        greedy(prompt, adapter=adapter) for prompt in PROMPTS[:3] for adapter in (None, "a", "b")
    ]
    alone = [await answer(adapted, request) for request in requests]

    together = await answers(adapted, requests)

    assert [tokens for tokens, _, _ in together] == [tokens for tokens, _, _ in alone]
    assert len({tuple(tokens) for tokens, _, _ in alone[:3]}) == 3


async def test_an_adapter_in_the_engine_says_what_it_says_in_training(adapted, tiny, make_adapter):
    tokens, _, _ = await answer(adapted, greedy(adapter="b"))

    assert tokens == oracle(tiny, (5, 6, 7), 20, make_adapter(tiny.config, 1))


async def test_the_same_seed_draws_the_same_reply_in_any_company(engine):
    request = greedy(temperature=1.0, top_p=0.95, seed=11, max_tokens=30)
    alone, _, _ = await answer(engine, request)
    company = [greedy(prompt, temperature=1.0) for prompt in PROMPTS[:5]]

    together = await answers(engine, [*company, request])

    assert together[-1][0] == alone


async def test_more_requests_than_slots_are_all_answered(engine):
    requests = [greedy(max_tokens=1 + i % 7, tenant=f"t{i % 3}") for i in range(40)]

    results = await answers(engine, requests)

    assert [finished.completion_tokens for _, _, finished in results] == [
        1 + i % 7 for i in range(40)
    ]
    assert engine.stats().requests == 40


async def test_a_full_engine_says_so(tiny):
    engine = Engine(tiny, slots=1, threads=1, waiting=1)
    engine.start()
    async with aclosing(engine.generate(greedy(max_tokens=200))) as first:
        await anext(first)
        second = asyncio.create_task(answer(engine, greedy()))
        await asyncio.sleep(0)  # lets the second be taken in

        with pytest.raises(BusyError):
            await answer(engine, greedy())

    await second
    await engine.close()


async def test_closing_the_iterator_frees_the_slot(tiny):
    engine = Engine(tiny, slots=1, threads=1)
    engine.start()
    async with aclosing(engine.generate(greedy(max_tokens=250))) as reply:
        await anext(reply)

    _, _, finished = await answer(engine, greedy(max_tokens=2))

    assert finished.completion_tokens == 2
    assert engine.stats().completion_tokens < 250
    await engine.close()


async def test_closing_the_engine_ends_running_replies(tiny):
    engine = Engine(tiny, slots=1, threads=1)
    engine.start()
    reply = engine.generate(greedy(max_tokens=250))
    await anext(reply)

    await engine.close()

    *_, last = [item async for item in reply]
    assert last.reason == "cancelled"
    with pytest.raises(UnavailableError):
        await answer(engine, greedy())


async def test_a_stop_string_ends_the_reply_before_it(engine):
    _, text, _ = await answer(engine, greedy(max_tokens=30))
    stop = text[5:8]

    tokens, stopped, finished = await answer(engine, greedy(max_tokens=30, stop=(stop,)))

    assert stopped == text[: text.index(stop)]
    assert finished.reason == "stop"
    assert len(tokens) == finished.completion_tokens


async def test_logprobs_come_with_every_token(engine):
    found = []
    async for item in engine.generate(greedy(logprobs=3, max_tokens=5)):
        if isinstance(item, Piece):
            found += item.logprobs

    assert len(found) == 5
    assert all(entry.top[0] == (entry.token, entry.logprob) for entry in found)


@pytest.mark.parametrize(
    ("prompt", "named"), [((), "empty"), ((5,) * 256, "256"), ((258,), "258"), ((-1,), "outside")]
)
async def test_an_impossible_prompt_is_refused(engine, prompt, named):
    with pytest.raises(InvalidError, match=named):
        await answer(engine, greedy(prompt))


async def test_a_reply_ends_where_the_context_does(engine):
    _, _, finished = await answer(engine, greedy((5,) * 250, max_tokens=100))

    assert finished.reason in {"length", "stop"}
    assert finished.completion_tokens <= 6


async def test_an_adapter_that_is_not_loaded_is_named(engine):
    with pytest.raises(NotFoundError, match="ghost"):
        await answer(engine, greedy(adapter="ghost"))


async def test_an_unloaded_adapter_is_gone_for_new_requests_only(adapted):
    async with aclosing(adapted.generate(greedy(adapter="a", max_tokens=20))) as running:
        await anext(running)
        await adapted.unload_adapter("a")
        *_, last = [item async for item in running]

    assert last.completion_tokens == 20 or last.reason == "stop"
    assert adapted.adapters() == {"b"}
    with pytest.raises(NotFoundError):
        await answer(adapted, greedy(adapter="a"))


async def test_an_adapter_that_makes_nan_ends_in_an_error_and_harms_nobody(
    engine, tiny, make_adapter, tmp_path
):
    adapter = make_adapter(tiny.config, 1, LoraConfig(rank=4, alpha=8))
    with torch.no_grad():
        adapter.b["down_proj"].fill_(1e38)  # finite, and too large to compute with
        adapter.a["down_proj"].fill_(1e38)
    adapter.save(tmp_path, tiny.id)
    await engine.load_adapter("huge", tmp_path)
    clean, _, _ = await answer(engine, greedy())

    (broken, text, finished), (tokens, _, _) = await answers(
        engine, [greedy(adapter="huge"), greedy()]
    )

    assert (finished.reason, broken, text) == ("error", [], "")
    assert tokens == clean


async def test_the_engine_computes_on_the_cores_it_is_given(engine):
    core = min(os.sched_getaffinity(0))

    await engine.use_cores((core,))

    tokens, _, _ = await answer(engine, greedy())
    assert len(tokens) == 20


async def test_cores_that_do_not_exist_are_refused(engine):
    with pytest.raises(InvalidError, match="4095"):
        await engine.use_cores((4095,))

    with pytest.raises(InvalidError, match=r"\(\)"):
        await engine.use_cores(())


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_scores_do_not_depend_on_what_is_scored_beside(tiny, batch_tokens):
    items = [([], "a" * n) for n in (3, 20, 1, 50)]

    scores = bits_per_byte(tiny, items, batch_tokens=batch_tokens)

    alone = [bits_per_byte(tiny, [item])[0] for item in items]
    assert scores == pytest.approx(alone, abs=1e-4)


def test_an_adapter_that_adds_nothing_scores_as_the_base(tiny, make_adapter):
    adapter = make_adapter(tiny.config, 1)
    items = [([], "hello there")]
    base = bits_per_byte(tiny, items)

    for up in adapter.b.values():
        up.data.zero_()

    assert bits_per_byte(tiny, items, adapter=adapter) == pytest.approx(base, abs=1e-4)
