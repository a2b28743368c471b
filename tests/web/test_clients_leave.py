"""A client who leaves ends the generation; what was said until then is kept."""

import asyncio

import httpx2
import pytest

from arbiters.events import Timings
from soma_agents.serving.turns import Ended
from soma_agents.web.streams import collect

BODY = {"model": "soma", "messages": [{"role": "user", "content": "Hello"}]}


async def given(soma):
    """The reply's event, once it is there."""
    batch = await soma.runtime.log.read(0, types=frozenset({"ReplyGiven"}), wait=10)
    while not batch.envelopes:
        batch = await soma.runtime.log.read(batch.end, types=frozenset({"ReplyGiven"}), wait=10)
    return batch.envelopes[0].payload


async def test_a_stream_that_is_closed_is_cancelled_and_kept(soma, url):
    soma.engine.hold = asyncio.Semaphore(2)

    async with (
        httpx2.AsyncClient() as http,
        http.stream("POST", f"{url}/v1/chat/completions", json=BODY | {"stream": True}) as answer,
    ):
        lines = answer.aiter_lines()
        assert "I" in await anext(lines)

    reply = await given(soma)
    assert reply["finish"] == "cancelled"
    assert reply["content"] in {"I", "I am"}
    assert soma.engine.cancelled == 1


async def test_a_plain_request_that_is_dropped_is_cancelled_and_kept(soma, url):
    soma.engine.hold = asyncio.Semaphore(1)

    async with httpx2.AsyncClient() as http:
        with pytest.raises(httpx2.ReadTimeout):
            await http.post(f"{url}/v1/chat/completions", json=BODY, timeout=0.5)

    reply = await given(soma)
    assert reply["finish"] == "cancelled"
    assert reply["content"] == "I"


async def test_a_shutdown_keeps_what_was_said(soma):
    soma.engine.hold = asyncio.Semaphore(1)
    request = asyncio.create_task(soma.chat("Hello"))
    await soma.engine.asked.wait()

    await soma.services.gateway.close()

    assert (await given(soma))["finish"] == "cancelled"
    await request


class AtItsEnd:
    """A turn that has ended; whoever watches the client takes a moment to stop."""

    def __init__(self):
        self.stopping = asyncio.Event()

    async def items(self):
        await asyncio.sleep(0)
        yield Ended(
            "stop", Timings(first_token=0, total=0, prompt_tokens=1, completion_tokens=1), 1
        )

    def leave(self):
        """Nothing is left to end."""

    async def receive(self):
        try:
            await asyncio.Event().wait()
        finally:
            self.stopping.set()
            await asyncio.sleep(0.01)


async def test_a_request_cancelled_as_its_turn_ends_is_cancelled():
    turn = AtItsEnd()
    request = asyncio.create_task(collect(turn, turn))
    await turn.stopping.wait()

    request.cancel()
    await asyncio.wait([request], timeout=5)

    assert request.cancelled()
