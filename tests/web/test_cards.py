"""What a model's file says of its use, the gateway does."""

import dataclasses

import pytest

from policies.personality import describe
from soma_agents.language.sou.card import Card, Parameters, Rule
from soma_agents.persona.voice import PERSONA
from soma_agents.storage.keys import ApiKey


@pytest.fixture
def soma_of(soma_with, words):
    """Start SOMA over a model whose file says this."""

    def start(**card):
        return soma_with(model=dataclasses.replace(words, card=Card(**card)))

    return start


OWN = Parameters(
    temperature=0.7, top_k=40, repetition_penalty=1.1, seed=5, max_tokens=9, stop=("END", "###")
)


async def test_replies_are_sampled_as_the_file_says_unless_the_request_says(soma_of):
    async with soma_of(parameters=OWN) as soma:
        await soma.chat("Hello")
        by_file = soma.engine.requests[-1].sampling
        await soma.chat(
            "Hello", temperature=0, top_p=0.5, top_k=0, seed=8, max_tokens=3, stop=["x"]
        )
        by_request = soma.engine.requests[-1].sampling
        await soma.http.post("/api/reason", json={"message": "Hello"})
        reasoned = soma.engine.requests[-1].sampling
        await soma.http.post("/v1/completions", json={"model": "soma", "prompt": "Once"})
        completed = soma.engine.requests[-1].sampling

    assert (by_file.temperature, by_file.top_p, by_file.top_k) == (0.7, 1.0, 40)
    assert (by_file.seed, by_file.max_tokens, by_file.stop) == (5, 9, ("END", "###"))
    assert by_file == reasoned == completed
    assert (by_request.temperature, by_request.top_p, by_request.top_k) == (0, 0.5, 0)
    assert (by_request.seed, by_request.max_tokens, by_request.stop) == (8, 3, ("x",))
    assert by_request.repetition_penalty == 1.1


async def test_without_a_word_of_file_and_request_somas_defaults_hold(soma_of):
    async with soma_of(parameters=Parameters(top_k=3)) as soma:
        await soma.chat("Hello")
        sampling = soma.engine.requests[-1].sampling

    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.2, 0.9, 3)
    assert sampling.max_tokens == 512


async def test_the_files_system_message_stands_where_a_request_has_none(soma_of):
    async with soma_of(system="You answer in rhymes.") as soma:
        await soma.chat("Hello")
        by_file = soma.prompt()
        messages = [
            {"role": "system", "content": "Be a pirate."},
            {"role": "user", "content": "Hello"},
        ]
        await soma.http.post("/v1/chat/completions", json={"messages": messages})
        by_request = soma.prompt()

    assert by_file.index("You answer in rhymes.") < by_file.index(PERSONA)
    assert "Be a pirate." in by_request
    assert "rhymes" not in by_request


async def test_a_file_that_speaks_as_soma_already_is_not_told_twice(soma_of):
    async with soma_of(system=PERSONA) as soma:
        await soma.chat("Hello")

        assert soma.prompt().count(PERSONA) == 1


async def test_a_personality_begins_at_the_files_set_points_and_moves_from_there(soma_of):
    points = {"humour": 1.0, "warmth": 0.0, "formality": 0.0}
    async with soma_of(personality=points) as soma:
        await soma.chat("Hello")
        begun = soma.prompt()

    async with soma_of() as soma:
        await soma.chat("Hello")
        plain = soma.prompt()

    assert "very humorous" in begun
    assert "very matter-of-fact" in begun
    assert "humorous" not in plain
    assert describe(points).removesuffix(".").split(" and ")[0] in begun


RULES = (
    Rule(effect="allow", user="ann"),
    Rule(effect="allow", user="acme/bob"),
    Rule(effect="deny", user="*"),
)


async def test_who_the_files_acl_does_not_let_in_gets_403(soma_of):
    async with soma_of(rules=RULES) as soma:
        secrets = {
            name: soma.services.keys.create(name, user=name, role="admin")
            for name in ("ann", "bob")
        }
        told = {}
        for name, secret in secrets.items():
            headers = {"Authorization": f"Bearer {secret}"}
            for path, body in (
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
                ("/v1/completions", {"model": "soma-v0", "prompt": "Hi"}),
                ("/api/reason", {"message": "Hi"}),
            ):
                told[name, path] = await soma.http.post(path, json=body, headers=headers)
        kept = {event.user for event in await soma.events("MessageReceived")}

    assert {name: told[name, path].status_code for name, path in told} == {"ann": 200, "bob": 403}
    for (name, _), answer in told.items():
        if name == "bob":
            error = answer.json()["error"]
            assert error["type"] == "permission_error"
            assert error["code"] == "insufficient_permissions"
            assert "'bob'" in error["message"]
    assert kept == {"ann"}


async def test_a_user_of_another_tenant_is_named_with_it(soma_of, monkeypatch):
    async with soma_of(rules=RULES) as soma:
        there = {"name": "k", "role": "user", "digest": "", "created_at": soma.runtime.clock.now()}
        people = {user: ApiKey(user=user, tenant="acme", **there) for user in ("ann", "bob")}
        soma.services.keys.create("keeper", role="admin")
        monkeypatch.setattr(soma.services.keys, "lookup", people.get)

        answers = {user: await soma.chat_as(user, "Hi") for user in people}

    assert answers["ann"].status_code == 403  # not the ann of this tenant
    assert answers["bob"].status_code == 200
