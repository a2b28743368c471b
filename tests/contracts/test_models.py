from dataclasses import replace

import pytest

from arbiters.errors import ConflictError, InvalidError, NotFoundError
from arbiters.records import ExperimentState, ModelVersion, Pointer, RoundState
from arbiters.testing import FakeClock


def version(identity, **fields):
    base = ModelVersion(
        id=identity,
        name="",
        base="base-1",
        path=f"models/{identity}",
        stage="candidate",
        dataset="d",
        round="r1",
        hyperparameters={"rank": 32, "rate": 2e-4},
        code_version="0.1",
        registered_at=FakeClock().now(),
    )
    return replace(base, **fields)


def state(identity, at, **fields):
    return replace(RoundState(id=identity, step="exporting", started_at=at, upto=9), **fields)


def experiment(identity, at, **fields):
    base = ExperimentState(
        id=identity,
        round="r1",
        champion="base-1",
        candidate="lora-1",
        ordinal=1,
        rules={"alpha": 0.05, "margins": [1, 2]},
        phase="offline",
        started_at=at,
    )
    return replace(base, **fields)


# --- registry ------------------------------------------------------------------------------


async def test_without_a_model_there_is_no_pointer(registry):
    with pytest.raises(NotFoundError):
        await registry.pointer()

    assert await registry.models() == []


async def test_the_base_is_soma_v0_and_the_first_champion(registry, at):
    await registry.install(version("base-1", path=""), at=at(0))
    await registry.install(version("base-2", path=""), at=at(1))

    assert await registry.pointer() == Pointer(champion="base-1", previous=None, since=at(0))
    base = await registry.model("soma-v0")
    assert (base.id, base.stage) == ("base-1", "champion")
    assert await registry.model("base-2") is None


async def test_versions_are_numbered_as_they_are_registered(registry, at):
    await registry.install(version("base-1"), at=at(0))

    first = await registry.register(version("lora-a", name="soma-v9", stage="champion"))
    second = await registry.register(version("lora-b"))

    assert (first.name, second.name) == ("soma-v1", "soma-v2")
    assert first == version("lora-a", name="soma-v1")
    assert await registry.model("soma-v2") == await registry.model("lora-b") == second
    assert [m.name for m in await registry.models()] == ["soma-v2", "soma-v1", "soma-v0"]


async def test_a_known_id_keeps_its_name(registry):
    first = await registry.register(version("lora-a"))

    again = await registry.register(version("lora-a", dataset="other"))

    assert again == first
    assert (await registry.register(version("lora-b"))).name == "soma-v2"


@pytest.mark.parametrize("name", ["", "soma-v", "soma-v7", "lora-x", "soma-v1 "])
async def test_an_unknown_name_is_nobody(registry, name):
    await registry.register(version("lora-a"))

    assert await registry.model(name) is None


async def test_swapping_moves_the_pointer_and_the_stages(registry, at):
    await registry.install(version("base-1"), at=at(0))
    await registry.register(version("lora-a"))

    pointer = await registry.swap(
        expected="base-1", champion="lora-a", at=at(1), watch_until=at(60)
    )

    assert pointer == Pointer("lora-a", "base-1", at(1), at(60))
    assert await registry.pointer() == pointer
    assert (await registry.model("lora-a")).stage == "champion"
    assert (await registry.model("base-1")).stage == "retired"


async def test_of_two_swaps_from_the_same_champion_one_loses(registry, at):
    await registry.install(version("base-1"), at=at(0))
    await registry.register(version("lora-a"))
    await registry.register(version("lora-b"))
    await registry.swap(expected="base-1", champion="lora-a", at=at(1))

    with pytest.raises(ConflictError, match="lora-a"):
        await registry.swap(expected="base-1", champion="lora-b", at=at(2))

    assert (await registry.pointer()).champion == "lora-a"
    assert (await registry.model("lora-b")).stage == "candidate"


async def test_an_unknown_model_never_becomes_champion(registry, at):
    await registry.install(version("base-1"), at=at(0))

    with pytest.raises(NotFoundError, match="lora-x"):
        await registry.swap(expected="base-1", champion="lora-x", at=at(1))

    assert (await registry.pointer()).champion == "base-1"


async def test_a_swap_to_the_champion_itself_keeps_the_way_back(registry, at):
    await registry.install(version("base-1"), at=at(0))
    await registry.register(version("lora-a"))
    there = await registry.swap(expected="base-1", champion="lora-a", at=at(1))

    assert await registry.swap(expected="lora-a", champion="lora-a", at=at(2)) == there

    assert (await registry.model("lora-a")).stage == "champion"


async def test_a_rollback_is_a_swap_back(registry, at):
    await registry.install(version("base-1"), at=at(0))
    await registry.register(version("lora-a"))
    await registry.swap(expected="base-1", champion="lora-a", at=at(1))

    pointer = await registry.swap(expected="lora-a", champion="base-1", at=at(2))

    assert pointer == Pointer("base-1", "lora-a", at(2))
    assert (await registry.model("lora-a")).stage == "retired"


async def test_stages_change_but_for_the_champions(registry, at):
    await registry.install(version("base-1"), at=at(0))
    await registry.register(version("lora-a"))

    await registry.set_stage("lora-a", "rejected")

    assert (await registry.model("lora-a")).stage == "rejected"
    with pytest.raises(ConflictError):
        await registry.set_stage("base-1", "retired")
    with pytest.raises(InvalidError):
        await registry.set_stage("lora-a", "champion")
    with pytest.raises(NotFoundError):
        await registry.set_stage("lora-x", "held")


async def test_specialists_are_found_by_name_until_they_are_retired(registry):
    poet, cook = (
        version(
            f"base-{name}",
            name=name,
            base=f"base-{name}",
            path="",
            stage="specialist",
            round="",
            code_version="",
        )
        for name in ("poet", "cook")
    )
    await registry.add_specialist(poet)
    await registry.add_specialist(cook)
    assert await registry.specialists() == [cook, poet]

    await registry.retire_specialist("poet")
    assert await registry.specialists() == [cook]
    with pytest.raises(NotFoundError):
        await registry.retire_specialist("poet")
    with pytest.raises(ConflictError, match="belongs to base-poet"):
        await registry.add_specialist(replace(poet, id="base-other", base="base-other"))

    await registry.add_specialist(poet)
    assert await registry.specialists() == [cook, poet]
    assert await registry.models() == []


# --- rounds --------------------------------------------------------------------------------


async def test_messages_are_counted_by_offset(rounds):
    for offset in (3, 5, 9):
        await rounds.count(offset, 2)
    await rounds.count(5, 2)

    assert await rounds.messages_since(0) == 6
    assert await rounds.messages_since(3) == 4
    assert await rounds.messages_since(9) == 0


async def test_a_round_is_current_until_it_is_finished(rounds, at):
    assert await rounds.current() is None
    assert await rounds.latest() is None
    await rounds.save(state("r1", at(0)))

    await rounds.save(state("r1", at(0), step="training", progress=0.5))

    assert await rounds.current() == state("r1", at(0), step="training", progress=0.5)
    done = state("r1", at(0), step="finished", verdict="held", because="x", finished_at=at(5))
    await rounds.save(done)
    assert await rounds.current() is None
    assert await rounds.latest() == done


async def test_rounds_are_listed_newest_first_whatever_the_clock_said(rounds, at):
    for minute in (0, 2, 1):
        await rounds.save(state(f"r{minute}", at(minute), step="finished"))
    await rounds.save(state("r0", at(0), step="finished", because="again"))

    assert [r.id for r in await rounds.rounds()] == ["r1", "r2", "r0"]
    assert [r.id for r in await rounds.rounds(limit=2)] == ["r1", "r2"]
    assert (await rounds.latest()).id == "r1"


# --- experiments ---------------------------------------------------------------------------


async def test_an_experiment_comes_back_as_it_was(experiments, at):
    saved = experiment(
        "e1",
        at(0),
        canary=(("champion", 0.5), ("candidate", -1.0)),
        offline={"target": {"mean": 0.1}},
        receipt={"verdict": "held"},
    )

    await experiments.save(experiment("e1", at(0)))
    await experiments.save(saved)

    assert await experiments.experiment("e1") == saved
    assert await experiments.experiment("e2") is None


async def test_experiments_run_until_they_are_finished(experiments, at):
    await experiments.save(experiment("e1", at(0), phase="finished", receipt={}))
    await experiments.save(experiment("e2", at(2), ordinal=2, phase="finished", receipt={}))
    await experiments.save(experiment("e3", at(1), ordinal=3, phase="finished", receipt={}))
    await experiments.save(experiment("e4", at(3), ordinal=4, phase="canary"))

    assert [e.id for e in await experiments.running()] == ["e4"]
    assert [e.id for e in await experiments.finished()] == ["e3", "e2", "e1"]
    assert [e.id for e in await experiments.finished(limit=1)] == ["e3"]


async def test_ordinals_count_every_experiment_there_ever_was(experiments, at):
    assert await experiments.next_ordinal() == 1

    await experiments.save(experiment("e1", at(0), ordinal=1, phase="finished"))
    await experiments.save(experiment("e2", at(1), ordinal=2))

    assert await experiments.next_ordinal() == 3


async def test_a_judgement_finds_the_arm_that_answered(experiments):
    await experiments.note_inference("inf", "e1", "lora-1")
    await experiments.note_inference("plain", "", "base-1")

    assert await experiments.inference("inf") == ("e1", "lora-1")
    assert await experiments.inference("plain") == ("", "base-1")
    assert await experiments.inference("unknown") is None


async def test_live_judgements_of_a_model_keep_their_order(experiments):
    for model, value in [("a", 1.0), ("b", -1.0), ("a", 0.0), ("a", 1.0)]:
        await experiments.note_watch(model, value)

    assert await experiments.watched("a") == [1.0, 0.0, 1.0]
    assert await experiments.watched("c") == []
