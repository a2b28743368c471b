"""Base models beside the first one: taken in, asked for by name, dismissed."""

import asyncio
import dataclasses
import json

import pytest
import torch

from arbiters.errors import InvalidError, NotFoundError
from soma_agents.language.sou.card import Card, Parameters, Rule
from soma_agents.pretraining.artifact import save_model
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.recipe import SHOWCASE
from soma_agents.pretraining.vocabulary import Vocabulary
from soma_agents.runtime.bases import keep_base
from soma_agents.serving import specialists as serving

LINEAGE = {"lineage": json.dumps({"corpus": "c0ffee", "recipe": {"name": "tiny"}})}


@pytest.fixture(scope="session")
def small_sou(tmp_path_factory):
    """A model of random weights that can converse, in a file that says this of its use."""
    torch.set_num_threads(1)
    vocabulary = Vocabulary.learn(["a fox and a crane " * 9], 262)
    model = dataclasses.replace(SHOWCASE.model, vocab_size=262, layers=1, d_model=64, d_ff=64)
    weights = dict(Learner(SHOWCASE.but(model=model).settled()).exported())

    def make(*, lineage=LINEAGE, **card):
        path = tmp_path_factory.mktemp("sou") / "small.sou"
        return save_model(path, model, weights, vocabulary, lineage, card=Card(**card))

    return make


async def add(soma, file, name):
    model = await asyncio.to_thread(keep_base, file, soma.services.settings.home / "models")
    return await soma.http.post("/api/specialists", json={"name": name, "model": model})


async def names(soma):
    return [model["id"] for model in (await soma.http.get("/v1/models")).json()["data"]]


async def test_a_model_of_ones_own_answers_by_its_name_beside_the_first(soma, small_sou):
    added = await add(soma, small_sou(parameters=Parameters(max_tokens=5)), "poet")

    answer = await soma.chat("Hello", model="poet", logprobs=True)
    first = await soma.chat("Hello")

    assert added.status_code == 201
    assert added.json()["model"].startswith("base-")
    assert answer.json()["model"] == "poet"
    assert answer.json()["usage"]["completion_tokens"] <= 5
    assert len(answer.json()["choices"][0]["logprobs"]["content"]) <= 5
    assert first.json()["model"] == "soma-v0"
    assert len(soma.engine.requests) == 1  # the first model was asked once
    assert await names(soma) == ["soma", "soma-v0", "poet", "soma-embed"]
    given = (await soma.events("ReplyGiven"))[0].payload
    assert (given["specialist"], given["model"]) == ("poet", added.json()["model"])


async def test_metrics_count_what_its_engine_does_while_it_is_loaded(soma, small_sou):
    await add(soma, small_sou(), "poet")
    await soma.chat("Hello", model="poet", max_tokens=3)
    numbers = soma.services.specialists.stats()["poet"]

    loaded = (await soma.http.get("/metrics")).text
    await soma.services.specialists.close()
    closed = (await soma.http.get("/metrics")).text

    assert numbers.requests > 0
    assert f'soma_engine{{name="requests",specialist="poet"}} {numbers.requests}.0' in loaded
    assert 'soma_engine{name="completion_tokens",specialist="poet"}' in loaded
    assert 'soma_engine{name="slots",specialist="personal"} 32.0' in loaded
    assert '"poet"' not in closed


async def test_its_lineage_is_registered_with_it(soma, small_sou):
    await add(soma, small_sou(), "poet")

    (found,) = (await soma.http.get("/api/specialists")).json()["data"]
    listed = (await soma.http.get("/api/models")).json()["data"][-1]

    assert found == listed
    assert (found["name"], found["stage"], found["dataset"]) == ("poet", "specialist", "c0ffee")
    assert found["hyperparameters"]["recipe"] == {"name": "tiny"}
    (event,) = await soma.events("SpecialistRegistered")
    assert event.payload["model"] == found["id"]


async def test_it_is_still_known_after_a_restart_and_loaded_when_asked(soma_with, small_sou):
    async with soma_with() as soma:
        await add(soma, small_sou(), "poet")

    async with soma_with() as soma:
        assert not soma.services.specialists._loaded
        assert (await soma.chat("Hello", model="poet", max_tokens=2)).json()["model"] == "poet"


async def test_one_that_is_dismissed_answers_nobody_and_may_come_back(soma, small_sou):
    file = small_sou()
    await add(soma, file, "poet")

    gone = await soma.http.delete("/api/specialists/poet")
    asked = await soma.chat("Hello", model="poet")
    twice = await soma.http.delete("/api/specialists/poet")
    back = await add(soma, file, "poet")

    assert gone.status_code == 200
    assert asked.status_code == 404
    assert asked.json()["error"]["code"] == "model_not_found"
    assert twice.status_code == 409
    assert back.status_code == 201
    assert (await soma.chat("Hello", model="poet", max_tokens=2)).status_code == 200


async def test_a_name_stays_with_its_model(soma, small_sou):
    await add(soma, small_sou(), "poet")

    taken = await add(soma, small_sou(system="Another."), "poet")
    reserved = [(await add(soma, small_sou(), name)).status_code for name in ("soma", "soma-v7")]

    assert taken.status_code == 409
    assert "belongs to base-" in taken.json()["error"]["message"]
    assert reserved == [409, 409]


async def test_its_file_says_how_it_is_used(soma, small_sou):
    rules = (Rule(effect="allow", user="ann"),)
    file = small_sou(system="You answer in rhymes.", rules=rules)

    await add(soma, file, "poet")

    answer = await soma.chat("Hello", model="poet")
    assert answer.status_code == 403
    assert await names(soma) == ["soma", "soma-v0", "soma-embed"]
    assert soma.services.gateway.card("poet").system == "You answer in rhymes."


async def test_a_damaged_file_is_refused_and_takes_nothing_along(soma, small_sou):
    await add(soma, small_sou(), "poet")
    (known,) = soma.services.specialists.versions
    await soma.services.specialists.close()
    file = soma.services.specialists.file(known.id)
    file.write_bytes(file.read_bytes()[:-1] + b"x")

    broken = await soma.chat("Hello", model="poet")

    assert broken.status_code == 500
    assert "damaged" in broken.json()["error"]["message"]
    assert (await soma.chat("Hello")).status_code == 200


async def test_only_what_was_taken_in_can_be_offered(soma):
    for model in ("base-0123456789abcdef", "../../etc", "."):
        offered = await soma.http.post("/api/specialists", json={"name": "poet", "model": model})
        assert offered.status_code == 404


def test_a_file_that_cannot_converse_or_is_none_is_not_taken_in(tmp_path):
    (tmp_path / "junk.sou").write_bytes(b"junk")

    with pytest.raises(NotFoundError):
        keep_base(tmp_path / "none.sou", tmp_path)
    with pytest.raises(InvalidError, match="junk"):
        keep_base(tmp_path / "junk.sou", tmp_path)


# --- room ----------------------------------------------------------------------------------


async def test_the_longest_unasked_makes_room_when_nobody_talks_to_it(
    soma_with, small_sou, monkeypatch
):
    monkeypatch.setattr(serving, "IDLE_SECONDS", -1.0)
    async with soma_with(engine={"specialists": 1}) as soma:
        await add(soma, small_sou(), "poet")
        await add(soma, small_sou(system="Another."), "cook")

        again = await soma.chat("Hello", model="poet", max_tokens=2)

        assert again.status_code == 200
        assert len(soma.services.specialists._loaded) == 1


async def test_one_in_use_is_not_closed_for_another(soma_with, small_sou):
    async with soma_with(engine={"specialists": 1}) as soma:
        await add(soma, small_sou(), "poet")

        refused = await add(soma, small_sou(system="Another."), "cook")

        assert refused.status_code == 503
        assert "1 of 1 models" in refused.json()["error"]["message"]


async def test_memory_is_counted_before_a_model_is_loaded(soma, small_sou):
    soma.services.specialists._free = lambda: 1000

    refused = await add(soma, small_sou(), "poet")

    assert refused.status_code == 503
    assert "MB of memory" in refused.json()["error"]["message"]


async def test_where_none_is_allowed_that_is_said(soma_with, small_sou):
    async with soma_with(engine={"specialists": 0}) as soma:
        refused = await add(soma, small_sou(), "poet")

        assert refused.status_code == 400
        assert "engine.specialists" in refused.json()["error"]["message"]


async def test_its_engine_gives_up_cores_with_the_first_ones(soma, small_sou):
    await add(soma, small_sou(), "poet")
    (loaded,) = soma.services.specialists._loaded.values()
    told = []
    loaded.engine.use_cores = lambda cores: _note(told, cores)

    await soma.services.rollout._share_cores(training=True)

    assert told == [soma.engine.cores]


async def _note(told, cores):
    told.append(cores)
