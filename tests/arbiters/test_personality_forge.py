import pytest

from arbiters.events import (
    FeedbackGiven,
    MessageReceived,
    PersonalityRestored,
    PersonalityShifted,
    ReplyGiven,
    Timings,
)
from arbiters.personality_forge import BEGINNING, EVERY, PersonalityForge
from arbiters.testing import FakeMeasures, MemoryPersonalityStore, react
from policies.personality import DEFAULTS

WHO = {"tenant": "local", "user": "owner"}
PLAYFUL = FakeMeasures(play_per_word=1.0, emoji_per_word=1.0)
LONG = "word " * 100


@pytest.fixture
def store():
    return MemoryPersonalityStore()


@pytest.fixture
def forge(store):
    return PersonalityForge(store=store, measures=PLAYFUL)


def asked(content=LONG, **rest):
    return MessageReceived(conversation="c1", message="m1", content=content, **rest)


def replied(inference="i1"):
    return ReplyGiven(
        conversation="c1",
        message="m1",
        inference=inference,
        content=LONG,
        model="base-1",
        specialist="personal",
        config_hash="0",
        finish="stop",
        timings=Timings(first_token=0.1, total=0.2, prompt_tokens=3, completion_tokens=2),
    )


def rated(value, target="i1", **rest):
    what = {"name": "rating", "value": value, "target_kind": "inference"} | rest
    return FeedbackGiven(feedback="f1", target=target, **what)


async def write(forge, messages):
    return [said for _ in range(messages) for said in await react(forge, asked())]


async def test_somebody_who_never_wrote_meets_the_beginning(forge):
    assert await forge.current(**WHO) == BEGINNING
    assert await forge.history(**WHO) == [BEGINNING]


async def test_it_moves_towards_how_a_person_writes_every_few_messages(forge):
    assert await write(forge, EVERY - 1) == []

    (shifted,) = await write(forge, 1)

    assert isinstance(shifted, PersonalityShifted)
    assert shifted.messages == EVERY
    assert shifted.dimensions["humour"] > DEFAULTS["humour"]
    assert shifted.because.startswith(f"{EVERY} messages: ")
    now = await forge.current(**WHO)
    assert (now.revision, dict(now.dimensions)) == (1, shifted.dimensions)


async def test_the_history_goes_down_to_the_beginning(forge):
    await write(forge, 2 * EVERY)

    history = await forge.history(**WHO)

    assert [revision.revision for revision in history] == [2, 1, 0]
    assert [revision.messages for revision in history] == [2 * EVERY, EVERY, 0]


async def test_without_a_real_change_there_is_no_revision(store):
    forge = PersonalityForge(store=store, measures=FakeMeasures(words=0.0))

    assert await write(forge, 3 * EVERY) == []
    assert (await forge.current(**WHO)).revision == 0


async def test_a_restart_loses_nothing(forge, store):
    await write(forge, EVERY - 1)
    restarted = PersonalityForge(store=store, measures=PLAYFUL)

    assert len(await write(restarted, 1)) == 1


async def test_words_that_are_not_the_persons_own_move_nothing(forge):
    for _ in range(2 * EVERY):
        assert await react(forge, asked(trust="external")) == []

    assert await forge.current(**WHO) == BEGINNING


@pytest.mark.parametrize(("value", "sign"), [(-1.0, -1), (1.0, 1)])
async def test_a_judged_reply_draws_or_repels(store, value, sign):
    forge = PersonalityForge(store=store, measures=PLAYFUL)
    await react(forge, replied())
    await react(forge, rated(value))
    silent = PersonalityForge(store=store, measures=FakeMeasures(words=0.0))

    (shifted,) = await write(silent, EVERY)

    assert (shifted.dimensions["humour"] - DEFAULTS["humour"]) * sign > 0


@pytest.mark.parametrize(
    "judgement",
    [
        rated(-1.0, target="unknown"),
        rated("nice", name="comment"),
        rated("better", name="rating"),
        rated(-1.0, source="JUDGE"),
    ],
)
async def test_other_judgements_move_nothing(forge, store, judgement):
    await react(forge, replied())

    assert await react(forge, judgement) == []
    assert await store.noted("local", "owner", "draft") is None


async def test_a_person_can_undo_shifts(forge):
    await write(forge, 2 * EVERY)
    (first,) = [r for r in await forge.history(**WHO) if r.revision == 1]

    await react(forge, PersonalityRestored(revision=1, dimensions=dict(first.dimensions)))

    now = await forge.current(**WHO)
    assert (now.revision, now.because) == (3, "restored revision 1")
    assert dict(now.dimensions) == dict(first.dimensions)
    assert await write(forge, EVERY - 1) == []


async def test_each_person_meets_a_personality_of_their_own(forge):
    for _ in range(EVERY):
        await react(forge, asked(), user="mira")

    assert await forge.current(**WHO) == BEGINNING
    assert (await forge.current("local", "mira")).revision == 1


async def test_a_judgement_can_complete_a_revision(store):
    silent = PersonalityForge(store=store, measures=FakeMeasures(words=0.0))
    await write(silent, EVERY)
    forge = PersonalityForge(store=store, measures=PLAYFUL)
    await react(forge, replied())

    (shifted,) = await react(forge, rated(1.0))

    assert shifted.messages == EVERY
