"""What clients hear when SOMA stops in order, and when the replica that answers them dies."""

import asyncio
import json

from soma_agents.web.last_word import LastWord, middlewares


async def told(application):
    """The messages that a client gets of an application behind the proxy."""
    said = []

    async def send(message):
        said.append(message)

    await LastWord(application)({"type": "http"}, None, send)
    return said


def start(status, kind):
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}


def events(lines):
    found = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert found[-1] == "[DONE]"
    return [json.loads(line) for line in found[:-1]]


# --- stopped in order ----------------------------------------------------------------------


async def test_a_reply_under_way_comes_to_its_end_and_newcomers_are_sent_away(soma):
    soma.engine.hold = asyncio.Semaphore(1)
    request = asyncio.create_task(soma.chat("Hello"))
    await soma.engine.asked.wait()

    stopping = asyncio.create_task(soma.services.gateway.drain(20))
    await asyncio.sleep(0)
    late = await soma.chat("And me?")
    for _ in range(20):
        soma.engine.hold.release()
    await stopping

    assert (await request).json()["choices"][0]["message"]["content"] == soma.engine.script
    assert late.status_code == 503
    assert int(late.headers["Retry-After"]) > 0
    assert "stopping" in late.json()["error"]["message"]
    assert [e.payload["content"] for e in await soma.events("MessageReceived")] == ["Hello"]


async def test_a_stream_that_takes_too_long_is_broken_off_with_a_word_and_kept(soma):
    soma.engine.hold = asyncio.Semaphore(2)
    request = asyncio.create_task(soma.chat("Hello", stream=True))
    await soma.engine.asked.wait()

    await soma.services.gateway.drain(0.05)

    *pieces, last = events((await request).text.splitlines())
    assert pieces
    assert last["error"]["type"] == "service_unavailable"
    (reply,) = await soma.events("ReplyGiven")
    assert reply.payload["finish"] == "cancelled"


# --- killed --------------------------------------------------------------------------------


async def test_a_stream_whose_replica_dies_ends_with_an_error_event():
    async def dies(_scope, _receive, send):
        await send(start(200, b"text/event-stream; charset=utf-8"))
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})

    first, piece, last = await told(dies)

    assert first["status"] == 200
    assert piece["more_body"]
    (error,) = events(last["body"].decode().splitlines())
    assert "ask again" in error["error"]["message"]
    assert not last.get("more_body", False)


async def test_a_request_whose_replica_dies_is_told_to_ask_again():
    async def fails(_scope, _receive, send):
        await send(start(500, b"text/plain"))
        await send({"type": "http.response.body", "body": b"Internal Server Error"})

    first, body = await told(fails)

    assert first["status"] == 503
    assert dict(first["headers"])[b"retry-after"].isdigit()
    assert json.loads(body["body"])["error"]["type"] == "service_unavailable"


async def test_what_soma_says_itself_passes_unchanged():
    ours = [
        start(500, b"application/json"),
        {"type": "http.response.body", "body": b"{}"},
    ]
    whole = [
        start(200, b"text/event-stream"),
        {"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True},
        {"type": "http.response.body", "body": b""},
    ]

    for messages in (ours, whole):

        async def says(_scope, _receive, send, messages=messages):
            for message in messages:
                await send(message)

        assert await told(says) == messages


def test_serve_is_given_the_last_word():
    assert LastWord in [each.cls for each in middlewares()]
