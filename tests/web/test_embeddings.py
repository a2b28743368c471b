"""`/v1/embeddings` through the official `openai` client and by hand."""

import base64
import json

import numpy as np
import openai
import pytest

from arbiters.errors import NotFoundError
from soma_agents.app.doctor import doctor
from soma_agents.app.keeper import Keeper
from soma_agents.language.geometry.embedder import Embedder
from soma_agents.language.geometry.file import to_bytes
from soma_agents.language.geometry.train import Plan, train
from soma_agents.settings import load_settings

TEXTS = ["The cat sat on the mat.", "A sleeping cat", "Stock prices fell"]


@pytest.fixture
async def client(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as made:
        yield made


async def post(soma, **body):
    return await soma.http.post("/v1/embeddings", json={"model": "soma-embed"} | body)


async def test_the_official_client_gets_a_vector_for_each_text(client):
    answer = await client.embeddings.create(model="soma-embed", input=TEXTS)

    assert [one.index for one in answer.data] == [0, 1, 2]
    assert answer.model == "soma-embed"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 12
    expected = Embedder.untrained().embed(TEXTS)
    np.testing.assert_allclose([one.embedding for one in answer.data], expected, atol=1e-6)


async def test_floats_and_base64_are_the_same_vectors(client):
    plain, packed = [
        await client.embeddings.create(model="soma-embed", input=TEXTS[0], encoding_format=form)
        for form in ("float", "base64")
    ]

    unpacked = np.frombuffer(base64.b64decode(packed.data[0].embedding), "<f4")
    np.testing.assert_allclose(plain.data[0].embedding, unpacked, rtol=1e-6)


async def test_fewer_dimensions_are_given_when_asked_for(client):
    answer = await client.embeddings.create(model="soma-embed", input=TEXTS, dimensions=256)

    made = np.array([one.embedding for one in answer.data])
    assert made.shape == (3, 256)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    assert made[0] @ made[1] > made[0] @ made[2]


async def test_the_embedder_is_listed_and_found(client):
    assert "soma-embed" in [model.id async for model in client.models.list()]
    assert (await client.models.retrieve("soma-embed")).id == "soma-embed"


async def test_nothing_is_kept(soma):
    before = len(await soma.events())

    await post(soma, input="my secret")

    assert len(await soma.events()) == before


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"input": ""}, 400, "input.0", "0 characters"),
        ({"input": []}, 400, "input", "has 0 texts"),
        ({"input": ["a", ""]}, 400, "input.1", "0 characters"),
        ({"input": ["a"] * 2049}, 400, "input", "has 2049 texts; send 1 to 2048"),
        ({"input": "a" * 131_073}, 400, "input.0", "131073 characters"),
        ({"input": [1, 2, 3]}, 400, "input", "token ids"),
        ({"input": [[1, 2], [3]]}, 400, "input", "token ids"),
        ({"input": "a", "dimensions": 1105}, 400, "dimensions", "at most 1104"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions", "greater than or equal to 1"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "model": "text-embedding-9"}, 404, None, "'text-embedding-9'"),
        ({"input": "a\ud800"}, 400, None, "half a character"),
        ({"input": 7}, 422, "input", "string"),
        ({}, 400, "input", "required"),
    ],
)
async def test_what_cannot_be_embedded_is_refused(soma, body, status, param, message):
    content = json.dumps({"model": "soma-embed"} | body)
    answer = await soma.http.post(
        "/v1/embeddings", content=content, headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["param"] == param


async def test_an_unknown_model_is_told_as_openai_does(client):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.embeddings.create(model="text-embedding-9", input="a")
    assert caught.value.code == "model_not_found"


async def test_with_a_key_nobody_embeds_without_one(soma):
    secret = soma.services.keys.create("ada", user="ada")

    bare = await post(soma, input="a")
    right = await soma.http.post(
        "/v1/embeddings", json={"input": "a"}, headers={"Authorization": f"Bearer {secret}"}
    )

    assert [bare.status_code, right.status_code] == [401, 200]


async def test_requests_are_counted_and_large_bodies_refused(soma_with):
    async with soma_with(server={"requests_per_minute": 6, "max_body_bytes": 1024}) as soma:
        answers = [await post(soma, input=text) for text in ("a" * 2000, "a")]

    assert [answer.status_code for answer in answers] == [413, 429]


async def test_a_trained_file_is_served(soma_with, tmp_path):
    embedder = train(["the cow eats the grass\nthe cow eats the hay"] * 20, Plan("semantic", dim=8))
    path = tmp_path / "farm.embed"
    path.write_bytes(to_bytes(embedder))

    async with soma_with(embeddings={"model": str(path)}) as soma:
        answer = await post(soma, input="cow")

    made = answer.json()["data"][0]["embedding"]
    np.testing.assert_allclose(made, embedder.embed(["cow"])[0], atol=1e-6)


def test_a_missing_file_is_refused_at_the_start_and_by_the_doctor(tmp_path):
    file = str(tmp_path / "none")
    settings = load_settings(tmp_path, environ={}, overrides={"embeddings": {"model": file}})

    with pytest.raises(NotFoundError, match="soma embed train"):
        Keeper(settings, 0)._look()
    (finding,) = [one for one in doctor(settings) if one["check"] == "embeddings"]
    assert not finding["ok"]
    assert "soma embed train" in finding["way_out"]
