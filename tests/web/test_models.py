"""Versions come into service and leave it; one that cannot speak never answers."""

import pytest

from arbiters.model_events import CanaryStarted, RoundFinished, TrainingRequested
from arbiters.records import ExperimentState, ModelVersion
from soma_agents.runtime.assembly import _rules
from soma_agents.storage.files import write_manifest


async def register(soma, name="soma-v1", *, stage="retired"):
    """A version with a sealed directory, as a round would have left it."""
    identity = f"lora-{name}"
    directory = soma.services.settings.home / "models" / identity
    directory.mkdir(parents=True)
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    write_manifest(directory, {"name": name})
    version = ModelVersion(
        id=identity,
        name=name,
        base=soma.services.model.id,
        path=str(directory),
        stage="candidate",
        dataset="",
        round="",
        hyperparameters={},
        code_version="",
        registered_at=soma.runtime.clock.now(),
    )
    registry = evaluation(soma)._registry
    await registry.register(version)
    await registry.set_stage(identity, stage)
    return version


def evaluation(soma):
    return soma.runtime._opened["evaluation"].host.arbiter


async def promote(soma, name):
    return await soma.http.post(f"/api/models/{name}/promote")


async def answering(soma, **options):
    return (await soma.chat("Hello", **options)).json()["model"]


async def test_a_promoted_version_answers_the_next_message_and_a_rollback_undoes_it(soma):
    await register(soma)

    promoted = await promote(soma, "soma-v1")
    assert promoted.json()["champion"] == {"name": "soma-v1", "id": "lora-soma-v1"}
    assert await answering(soma) == "soma-v1"
    assert soma.engine.requests[-1].adapter == "lora-soma-v1"

    undone = await soma.http.post("/api/models/rollback")
    assert undone.json()["champion"]["name"] == "soma-v0"
    assert await answering(soma) == "soma-v0"
    assert soma.engine.requests[-1].adapter is None


async def test_what_cannot_be_promoted_is_a_conflict_or_unknown(soma):
    assert (await promote(soma, "soma-v0")).status_code == 409
    assert (await promote(soma, "soma-v7")).status_code == 404
    refused = await soma.http.post("/api/models/rollback")
    assert refused.status_code == 409
    assert refused.json()["error"]["message"]


async def test_the_champion_is_still_known_after_a_restart(soma_with):
    async with soma_with() as soma:
        await register(soma)
        await promote(soma, "soma-v1")

    async with soma_with() as soma:
        assert await answering(soma) == "soma-v1"


async def test_an_older_version_is_asked_for_by_name(soma):
    await register(soma)
    await promote(soma, "soma-v1")

    assert await answering(soma, model="soma-v0") == "soma-v0"
    names = [model["id"] for model in (await soma.http.get("/v1/models")).json()["data"]]
    assert names == ["soma", "soma-v1", "soma-v0", "soma-embed"]


@pytest.mark.parametrize("stage", ["candidate", "rejected"])
async def test_a_version_that_did_not_pass_the_gate_never_answers(soma, stage):
    await register(soma, stage=stage)

    assert (await soma.chat("Hello", model="soma-v1")).status_code == 404
    assert "lora-soma-v1" not in soma.engine.adapters()


async def test_a_version_that_gives_nan_never_answers_and_its_promotion_is_undone(soma):
    await register(soma)
    soma.engine.broken.add("lora-soma-v1")

    refused = await promote(soma, "soma-v1")

    assert refused.status_code == 409
    assert "soma-v1" in refused.json()["error"]["message"]
    assert await answering(soma) == "soma-v0"
    assert "self-test" in (await until(soma, "ModelRolledBack")).payload["because"]
    assert "lora-soma-v1" not in soma.engine.adapters()


async def test_a_damaged_adapter_is_not_even_loaded(soma):
    version = await register(soma)
    weights = soma.services.settings.home / "models" / version.id / "adapter_model.safetensors"
    weights.write_bytes(b"WEIGHTS")

    refused = await promote(soma, "soma-v1")

    assert refused.status_code == 409
    assert "damaged" in refused.json()["error"]["message"]
    assert await answering(soma) == "soma-v0"


async def test_a_canary_answers_a_share_and_each_conversation_keeps_its_model(soma):
    await register(soma, stage="candidate")
    await start_canary(soma, share=0.5)

    first = [(await soma.chat("Hello")).json() for _ in range(24)]

    models = {answer["model"] for answer in first}
    assert models == {"soma-v0", "soma-v1"}
    for answer in first[:6]:
        again = await soma.http.post(
            "/api/reason",
            json={"message": "And now?", "conversation": answer["soma_conversation"]},
        )
        assert again.json()["model"] == answer["model"]
    given = await soma.events("ReplyGiven")
    assert {event.payload["experiment"] for event in given} == {"exp-1"}


async def start_canary(soma, *, share):
    settings = soma.services.settings
    rules = _rules(settings, 1)
    live = rules.live.model_copy(update={"share": share})
    await evaluation(soma)._experiments.save(
        ExperimentState(
            id="exp-1",
            round="round-1",
            champion=soma.services.model.id,
            candidate="lora-soma-v1",
            ordinal=1,
            rules=rules.model_copy(update={"live": live}).model_dump(mode="json"),
            phase="canary",
            started_at=soma.runtime.clock.now(),
        )
    )
    started = CanaryStarted(
        round="round-1",
        experiment="exp-1",
        champion=soma.services.model.id,
        candidate="lora-soma-v1",
        share=share,
    )
    said = await soma.runtime.publisher.publish(started)
    await soma.services.rollout.reached(said.offset)


async def test_the_engine_gives_up_cores_while_a_round_trains(soma):
    assert soma.engine.cores == (0, 1)

    said = await soma.runtime.publisher.publish(
        TrainingRequested(round="r", dataset="d", path="p", parent="base")
    )
    await soma.services.rollout.reached(said.offset)
    assert soma.engine.cores == (0,)

    said = await soma.runtime.publisher.publish(
        RoundFinished(round="r", verdict="held", because="b", seconds=1.0)
    )
    await soma.services.rollout.reached(said.offset)
    assert soma.engine.cores == (0, 1)


async def test_unused_adapters_make_room_but_never_those_in_service(soma_with):
    async with soma_with(engine={"adapters": 2}) as soma:
        for number in range(1, 5):
            await register(soma, f"soma-v{number}")
        await promote(soma, "soma-v1")

        for number in range(2, 5):
            assert await answering(soma, model=f"soma-v{number}") == f"soma-v{number}"

        assert soma.engine.adapters() == {"lora-soma-v1", "lora-soma-v4"}


async def test_a_champion_whose_files_are_damaged_does_not_answer_and_is_taken_back(soma_with):
    async with soma_with() as soma:
        for name in ("soma-v1", "soma-v2"):
            await register(soma, name)
            await promote(soma, name)
        weights = soma.services.settings.home / "models/lora-soma-v2/adapter_model.safetensors"
    weights.write_bytes(b"wEights")

    async with soma_with() as soma:
        assert await answering(soma) == "soma-v1"

        undone = await until(soma, "ModelRolledBack")
        (asked,) = await soma.events("RollbackRequested")

    assert str(weights) in asked.payload["because"]
    assert undone.payload["restored_name"] == "soma-v1"


async def test_the_champion_answers_from_wherever_the_data_directory_is_now(
    started, words, tmp_path
):
    async with started(tmp_path / "home", words) as soma:
        await register(soma)
        await promote(soma, "soma-v1")
    (tmp_path / "home").rename(tmp_path / "moved")

    async with started(tmp_path / "moved", words) as soma:
        assert await answering(soma) == "soma-v1"


async def until(soma, kind):
    """The first event of a type."""
    offset = 0
    while True:
        batch = await soma.runtime.log.read(offset, types=frozenset({kind}), wait=10)
        if batch.envelopes:
            return batch.envelopes[0]
        offset = batch.end
