"""The real first model behind the interface, asked by the official client over a real socket."""

import asyncio

import openai
import pytest

from soma_agents.language.engine import Engine
from soma_agents.language.model import load_model

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture
async def client(soma_with, listening):
    model = load_model("smollm2")
    engine = Engine(model, slots=8)
    await asyncio.to_thread(engine.start)
    async with (
        soma_with(model=model, backend=engine) as soma,
        listening(soma) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as made,
    ):
        yield made
    await engine.close()


async def ask(client, text, **options):
    return await client.chat.completions.create(
        model="soma",
        messages=[{"role": "user", "content": text}],
        **({"max_tokens": 12, "temperature": 0} | options),
    )


async def test_it_answers_streams_stops_and_gives_logprobs(client):
    question = "What is the capital of Japan?"
    plain = await ask(client, question, logprobs=True, top_logprobs=2)
    stream = await ask(client, question, stream=True)
    streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    stopped = await ask(client, question, stop=["Japan"])
    async with asyncio.TaskGroup() as group:
        many = [group.create_task(ask(client, question)) for _ in range(8)]

    assert "Tokyo" in plain.choices[0].message.content
    assert plain.model == "soma-v0"
    assert streamed == plain.choices[0].message.content
    tokens = plain.choices[0].logprobs.content
    assert "".join(one.token for one in tokens).startswith(plain.choices[0].message.content[:20])
    assert all(one.logprob <= 0 and len(one.top_logprobs) == 2 for one in tokens)
    assert stopped.choices[0].finish_reason == "stop"
    assert "Japan" not in stopped.choices[0].message.content
    assert {task.result().choices[0].message.content for task in many} == {streamed}


async def test_it_knows_what_it_was_told_in_another_conversation(client):
    async def reason(text):
        options = {"max_tokens": 24, "temperature": 0}
        return await client.post("../api/reason", body={"message": text} | options, cast_to=dict)

    told = await reason("We keep our spare key under the blue flower pot.")
    await client.get("../api/memory/search?q=key", cast_to=dict)  # waits for the newest
    answer = await reason("Where is the spare key?")

    assert answer["conversation"] != told["conversation"]
    assert "blue flower pot" in answer["reply"]
