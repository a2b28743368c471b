"""The official `openai` client, unchanged, over a real socket."""

import openai
import pytest


@pytest.fixture
async def client(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as made:
        yield made


HELLO = [{"role": "user", "content": "Hello, I feel fine today."}]


async def test_a_chat_is_answered_with_usage_and_ids(soma, client):
    answer = await client.chat.completions.create(model="soma", messages=HELLO)

    assert answer.choices[0].message.content == "I am glad to hear that."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "soma-v0"
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6
    (given,) = await soma.events("ReplyGiven")
    assert given.payload["inference"] == answer.soma_inference
    assert given.payload["conversation"] == answer.soma_conversation


async def test_a_stream_gives_the_same_text_and_ends_with_usage(client):
    stream = await client.chat.completions.create(
        model="soma", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == "I am glad to hear that."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 6
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_reply_is_in_the_log_when_the_stream_says_that_it_ended(soma, client):
    stream = await client.chat.completions.create(model="soma", messages=HELLO, stream=True)
    async for chunk in stream:
        if chunk.choices[0].finish_reason:
            assert len(await soma.events("ReplyGiven")) == 1


async def test_a_completion_goes_on_with_the_bare_text(soma, client):
    answer = await client.completions.create(model="soma", prompt="Once upon", max_tokens=2)

    assert answer.choices[0].text == "I am"
    assert answer.choices[0].finish_reason == "length"
    prompt = soma.prompt()
    assert prompt == "Once upon"


async def test_a_completion_streams(client):
    stream = await client.completions.create(model="soma", prompt="Once upon", stream=True)
    chunks = [chunk async for chunk in stream]

    assert "".join(c.choices[0].text for c in chunks) == "I am glad to hear that."
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_the_models_are_listed_and_found(client):
    names = [model.id async for model in client.models.list()]

    assert names == ["soma", "soma-v0", "soma-embed"]
    assert (await client.models.retrieve("soma-v0")).id == "soma-v0"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("soma-v9")


async def test_a_version_is_asked_for_by_name_and_by_id(soma, client):
    for name in ("soma-v0", soma.services.model.id):
        answer = await client.chat.completions.create(model=name, messages=HELLO)
        assert answer.model == "soma-v0"


async def test_the_settings_of_a_request_reach_the_engine(soma, client):
    await client.chat.completions.create(
        model="soma",
        messages=HELLO,
        temperature=0.7,
        top_p=0.5,
        seed=11,
        stop=["\n", "END"],
        max_completion_tokens=5,
        extra_body={"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2},
    )

    sampling = soma.engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.7, 0.5, 11)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (7, 0.1, 1.2)
    assert sampling.stop == ("\n", "END")
    assert sampling.max_tokens == 5


async def test_text_in_parts_is_one_text(soma, client):
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
    await client.chat.completions.create(
        model="soma", messages=[{"role": "user", "content": parts}]
    )

    (received,) = await soma.events("MessageReceived")
    assert received.payload["content"] == "Hello there"


async def test_a_prompt_beyond_the_context_is_refused_as_openai_does(soma, client):
    long = [{"role": "user", "content": "word " * 3000}]

    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="soma", messages=long)

    assert caught.value.code == "context_length_exceeded"
    assert await soma.events("MessageReceived") == []


async def test_an_enormous_prompt_is_refused_before_it_is_counted(client):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model="soma", messages=[{"role": "user", "content": "x" * 7_000_000}]
        )

    assert caught.value.code == "context_length_exceeded"


async def test_a_full_engine_says_when_to_come_back(soma, client):
    soma.engine.full = True

    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="soma", messages=HELLO, stream=True)

    assert caught.value.response.headers["Retry-After"] == "3"


async def test_an_engine_that_breaks_off_is_an_error_and_is_kept(soma, client):
    soma.engine.reason = "error"

    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="soma", messages=HELLO)

    (given,) = await soma.events("ReplyGiven")
    assert given.payload["finish"] == "error"


async def test_an_engine_that_breaks_off_ends_the_stream_with_an_error(soma, client):
    soma.engine.reason = "error"
    stream = await client.chat.completions.create(model="soma", messages=HELLO, stream=True)

    with pytest.raises(openai.APIError, match="broke off"):
        [chunk async for chunk in stream]
