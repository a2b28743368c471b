"""What cannot be done is refused clearly and leaves no trace: one SOMA for all of these."""

import json

import openai
import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"Content-Type": "application/json"}
HELLO = [{"role": "user", "content": "Hello, I feel fine today."}]
CONVERSATION = {
    "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
    "source": "test",
    "digest": "digest-1",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def soma(started, words, tmp_path_factory):
    async with started(tmp_path_factory.mktemp("home"), words) as parts:
        yield parts


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(soma, listening):
    async with (
        listening(soma) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as made,
    ):
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inference(soma):
    return (await soma.http.post("/v1/completions", json={"prompt": "Hello"})).json()[
        "soma_inference"
    ]


@pytest.mark.parametrize(
    ("wrong", "error", "code"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found"),
        ({"messages": []}, openai.BadRequestError, None),
        ({"messages": [{"role": "user", "content": "  "}]}, openai.BadRequestError, None),
        ({"messages": [{"role": "assistant", "content": "x"}]}, openai.BadRequestError, None),
        ({"messages": [{"role": "wizard", "content": "x"}]}, openai.BadRequestError, None),
        ({"messages": "hello"}, openai.UnprocessableEntityError, None),
        ({"messages": [{"role": "user", "content": 5}]}, openai.UnprocessableEntityError, None),
        ({"temperature": "hot"}, openai.UnprocessableEntityError, None),
        ({"temperature": 3.0}, openai.BadRequestError, None),
        ({"top_p": 0.0}, openai.BadRequestError, None),
        ({"max_tokens": 0}, openai.BadRequestError, None),
        ({"n": 2}, openai.BadRequestError, None),
        ({"stop": [""]}, openai.BadRequestError, None),
        ({"presence_penalty": 0.5}, openai.BadRequestError, None),
        ({"top_logprobs": 3}, openai.BadRequestError, None),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            openai.BadRequestError,
            None,
        ),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, None),
    ],
)
async def test_what_cannot_be_done_is_refused_clearly_and_leaves_no_trace(
    soma, client, wrong, error, code
):
    with pytest.raises(error) as caught:
        await client.chat.completions.create(**({"model": "soma", "messages": HELLO} | wrong))

    assert caught.value.body["message"]
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.code == code
    assert not [e for e in await soma.events("MessageReceived") if e.payload["content"] != "Hello"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"\xff\xfe", 400),
        (b"[]", 422),
        (b"null", 422),
        (b'{"model": "soma"}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": Infinity}', 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "stop": {"a": 1}}', 422),
        (b'{"messages": [{"role": "user", "content": "x"}], "seed": 1e400}', 422),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400),
        (b'{"messages": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400),
    ],
)
async def test_broken_requests_get_an_error_in_openais_shape(soma, content, status):
    answer = await soma.http.post("/v1/chat/completions", content=content, headers=JSON)

    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert not [e for e in await soma.events("MessageReceived") if e.payload["content"] != "Hello"]


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"value": 2}, 400),
        ({"value": "good"}, 400),
        ({"value": float("nan")}, 400),
        ({"name": "comment", "value": 1}, 400),
        ({"name": "mood"}, 400),
        ({"name": "comment", "value": ""}, 400),
        ({"value": [1]}, 422),
        ({"target": 5}, 422),
        ({"colour": "red"}, 400),
    ],
)
async def test_a_judgement_without_sense_is_refused(soma, inference, wrong, status):
    body = {"target": inference, "name": "rating", "value": 1} | wrong

    answer = await soma.http.post("/feedback", content=json.dumps(body), headers=JSON)

    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert await soma.events("FeedbackGiven") == []


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"messages": []}, 400),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400),
        ({"messages": [{"role": "user", "content": 1}]}, 422),
        ({"happened_at": "yesterday"}, 422),
        ({"digest": ""}, 400),
    ],
)
async def test_a_broken_import_is_refused_as_a_whole(soma, wrong, status):
    broken = CONVERSATION | {"digest": "digest-2"} | wrong

    answer = await soma.http.post("/api/import", json={"conversations": [CONVERSATION, broken]})

    assert answer.status_code == status, answer.text
    assert "conversations.1" in answer.json()["error"]["param"]
    assert await soma.events("ConversationImported") == []
