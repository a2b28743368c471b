from datetime import timedelta

import pytest

from arbiters.events import (
    ChatMessage,
    ConversationDeleted,
    ConversationImported,
    FactForgotten,
    FactStated,
    FeedbackGiven,
    MessageReceived,
    ReplyGiven,
    Timings,
)
from arbiters.kernel.bus import Publisher
from arbiters.model_events import DatasetExported, DatasetRefused, RoundStarted
from arbiters.testing import FakeClock, MemoryDatasetWriter, MemoryEventLog, SequentialIds, react
from arbiters.training_data_exporter.arbiter import ExportRules, TrainingDataExporter
from arbiters.training_data_exporter.examples import build, sides
from arbiters.training_data_exporter.reading import CONTEXT_TURNS, Reading
from policies.privacy import PrivacyRules
from policies.training import ExampleRules

NOTHING_NEEDED = ExampleRules(min_train=0, min_validation=0, min_heldout=0)


class World:
    """A log to write a life into, and the exporter over it."""

    def __init__(self, enough=NOTHING_NEEDED):
        self.log = MemoryEventLog()
        self.clock = FakeClock()
        self.publisher = Publisher(
            log=self.log, clock=self.clock, ids=SequentialIds(), producer="test"
        )
        self.writer = MemoryDatasetWriter()
        rules = ExportRules(heldout_share=0.2, enough=enough)
        self.exporter = TrainingDataExporter(log=self.log, writer=self.writer, rules=rules)

    async def say(self, *events, **who):
        for event in events:
            self.clock.advance(minutes=1)
            said = await self.publisher.publish(event, **who)
        return said

    async def examples(self, rules=None):
        reading = Reading("local")
        await reading.read(self.log, upto=await self.log.end())
        return build(reading, rules or PrivacyRules())


@pytest.fixture
def world():
    return World()


def asked(message="m1", content="Is tea hot?", conversation="c1", **rest):
    return MessageReceived(conversation=conversation, message=message, content=content, **rest)


def replied(inference="i1", content="No.", message="m1", conversation="c1", finish="stop"):
    return ReplyGiven(
        conversation=conversation,
        message=message,
        inference=inference,
        content=content,
        model="base-1",
        specialist="personal",
        config_hash="0",
        finish=finish,
        timings=Timings(first_token=0.1, total=0.2, prompt_tokens=3, completion_tokens=2),
    )


def judged(name, value, target="i1", kind="inference", source="HUMAN"):
    return FeedbackGiven(
        feedback=f"{target}/{name}/{value}",
        target=target,
        target_kind=kind,
        name=name,
        value=value,
        source=source,
    )


def imported(number=1, *, held_out=False, turns=None, digest=None):
    said = turns or [
        ("user", f"What is thing number {number} made of?"),
        ("assistant", f"Thing {number} is made of stuff {number} and glue."),
    ]
    return ConversationImported(
        conversation=f"old{number}",
        digest=digest or f"digest{number}",
        source="text",
        messages=tuple(ChatMessage(role=role, content=text) for role, text in said),
        held_out=held_out,
    )


def fact(subject="name", value="Mira", message=""):
    return FactStated(
        fact=f"{message}/{subject}",
        message=message,
        subject=subject,
        value=value,
        kind="fact",
        quote=value,
    )


def turns(example):
    return [(message.role, message.content) for message in example.messages]


def by_kind(built):
    return {example.kind: example for example in built.examples}


# --- replies -------------------------------------------------------------------------------


async def test_a_reply_that_nobody_judged_is_context_and_never_a_target(world):
    await world.say(asked(), replied(), asked("m2", "Sure?"), replied("i2", "Yes.", "m2"))
    await world.say(judged("rating", 1.0, "i2"))

    built = await world.examples()

    (liked,) = built.examples
    assert liked.kind == "liked"
    assert turns(liked) == [
        ("user", "Is tea hot?"),
        ("assistant", "No."),
        ("user", "Sure?"),
        ("assistant", "Yes."),
    ]
    assert liked.trust == "self"
    assert built.excluded == {"nobody judged it": 1}


async def test_a_better_answer_is_a_target_and_wins_over_the_reply(world):
    message, reply = await world.say(asked()), await world.say(replied())
    better = await world.say(judged("demonstration", "Yes, if freshly made."))

    kinds = by_kind(await world.examples())

    assert set(kinds) == {"demonstration", "preference"}
    target, pair = kinds["demonstration"], kinds["preference"]
    assert turns(target) == [("user", "Is tea hot?"), ("assistant", "Yes, if freshly made.")]
    assert target.events == (message.id, reply.id, better.id)
    assert (target.trust, target.group, target.rejected) == ("owner", "owner/c1", None)
    assert (pair.messages, pair.rejected, pair.group) == (target.messages, "No.", target.group)


async def test_a_liked_reply_with_a_better_answer_does_not_lose(world):
    await world.say(asked(), replied(), judged("rating", 1.0), judged("demonstration", "Yes."))

    assert set(by_kind(await world.examples())) == {"demonstration"}


async def test_a_better_answer_equal_to_the_reply_makes_no_pair(world):
    await world.say(asked(), replied(), judged("demonstration", " No. "))

    assert set(by_kind(await world.examples())) == {"demonstration"}


async def test_a_better_answer_to_a_conversation_is_one_to_its_last_reply(world):
    await world.say(asked(), replied(), asked("m2", "And ice?"), replied("i2", "Hot.", "m2"))
    await world.say(judged("demonstration", "Cold.", target="c1", kind="conversation"))
    await world.say(judged("demonstration", "Cold.", target="c2", kind="conversation"))

    target = by_kind(await world.examples())["demonstration"]

    assert turns(target)[-2:] == [("user", "And ice?"), ("assistant", "Cold.")]


async def test_a_disliked_reply_is_only_ever_the_losing_side(world):
    await world.say(asked(), replied(), judged("rating", -1.0))

    built = await world.examples()

    assert built.examples == []
    assert built.excluded == {"a person rated it -1": 1}


@pytest.mark.parametrize("source", ["JUDGE", "CODE", "IMPLICIT"])
async def test_what_no_human_judged_is_no_target(world, source):
    await world.say(asked(), replied(), judged("rating", 1.0, source=source))
    await world.say(judged("demonstration", "Yes.", source=source))
    await world.say(judged("preference", "i1", source=source))

    assert (await world.examples()).examples == []


@pytest.mark.parametrize("trust", ["external", "self"])
async def test_answers_to_untrusted_words_are_no_targets(world, trust):
    await world.say(asked(trust=trust), replied(), judged("rating", 1.0))
    await world.say(asked("m2", "x", trust=trust), replied("i2", "y", "m2"))
    await world.say(judged("demonstration", "Yes.", "i2"), judged("preference", "i1", "i2"))

    built = await world.examples()

    assert built.examples == []
    assert built.excluded[f"what it answers is of trust {trust!r}"] == 2


@pytest.mark.parametrize(
    ("finish", "content"), [("error", "No."), ("cancelled", "N"), ("stop", " ")]
)
async def test_a_reply_that_was_broken_off_is_no_target(world, finish, content):
    await world.say(asked(), replied(finish=finish, content=content), judged("rating", 1.0))

    built = await world.examples()

    assert built.examples == []
    assert built.excluded == {"it was broken off": 1}


async def test_a_preference_between_two_answers_to_the_same_makes_a_pair(world):
    await world.say(asked(), replied(), asked("m2", conversation="c2"))
    await world.say(replied("i2", "Yes.", "m2", "c2"), judged("preference", "i2"))

    pair = by_kind(await world.examples())["preference"]

    assert (turns(pair)[-1], pair.rejected) == (("assistant", "Yes."), "No.")


async def test_preferences_that_cannot_be_compared_are_left_out(world):
    await world.say(asked(), replied(), asked("m2", "And ice?"), replied("i2", "Cold.", "m2"))
    await world.say(judged("preference", "i2"), judged("preference", "unknown", "i2"))
    await world.say(judged("comment", "nice"))

    built = await world.examples()

    assert built.examples == []
    assert built.excluded["a preference between replies that cannot be compared"] == 2


async def test_a_disliked_reply_wins_no_preference(world):
    await world.say(asked(), replied(), asked("m2", conversation="c2"))
    await world.say(replied("i2", "Yes.", "m2", "c2"), judged("preference", "i2"))
    await world.say(judged("rating", -1.0, "i2"))

    built = await world.examples()

    assert built.examples == []
    assert built.excluded["a preference for a reply that was disliked"] == 1


# --- context -------------------------------------------------------------------------------


async def test_a_stateless_clients_context_is_the_context(world):
    context = (
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="Hi"),
        ChatMessage(role="assistant", content="Hello"),
    )
    await world.say(asked(context=context), replied(), judged("rating", 1.0))

    (liked,) = (await world.examples()).examples

    assert liked.messages[:3] == context
    assert len(liked.messages) == 5


async def test_of_a_long_conversation_the_newest_turns_and_the_instruction_are_kept(world):
    context = [ChatMessage(role="system", content="Be brief.")]
    context += [ChatMessage(role="user", content=f"turn {i}") for i in range(50)]
    await world.say(asked(context=tuple(context)), replied(), judged("rating", 1.0))

    (liked,) = (await world.examples()).examples

    assert len(liked.messages) == 1 + CONTEXT_TURNS + 2
    assert turns(liked)[:2] == [("system", "Be brief."), ("user", "turn 30")]


# --- imports -------------------------------------------------------------------------------


async def test_every_imported_answer_to_a_person_is_a_target_in_its_context(world):
    await world.say(
        imported(
            turns=[
                ("assistant", "Welcome."),
                ("user", "Is tea hot?"),
                ("assistant", "Yes."),
                ("assistant", "Very."),
                ("user", "And ice?"),
                ("assistant", "Cold as can be."),
                ("user", "Blank?"),
                ("assistant", "  "),
            ]
        )
    )

    built = await world.examples()

    assert sorted(turns(e)[-1][1] for e in built.examples) == ["Cold as can be.", "Yes."]
    assert {len(e.messages) for e in built.examples} == {3, 6}
    assert {(e.kind, e.trust, e.group) for e in built.examples} == {
        ("imported", "imported", "owner/old1")
    }


async def test_the_same_conversation_imported_twice_counts_once(world):
    await world.say(imported(1, digest="same"), imported(2, digest="same"))

    assert len((await world.examples()).examples) == 1


async def test_an_imported_conversation_that_is_held_out_is_never_trained_on(world):
    await world.say(*(imported(number, held_out=number < 4) for number in range(20)))

    split = sides(await world.examples(), heldout_share=0.2)

    assert {f"owner/old{number}" for number in range(4)} <= {e.group for e in split["heldout"]}


async def test_of_repeated_examples_the_held_out_one_stays(world):
    await world.say(imported(1, held_out=True, digest="a"))
    same = imported(1, digest="b").model_copy(update={"conversation": "copy"})
    await world.say(same)

    built = await world.examples()

    assert [example.group for example in built.examples] == ["owner/old1"]
    assert built.excluded["it repeats another"] == 1


# --- facts ---------------------------------------------------------------------------------


async def test_a_fact_becomes_questions_of_which_one_is_held_back(world):
    stated = await world.say(fact())

    built = await world.examples()
    split = sides(built, heldout_share=0.2)

    assert len(split["train"]) >= 5
    assert len(split["validation"]) == 1
    assert split["heldout"] == []
    assert all(example.events == (stated.id,) for example in built.examples)
    assert {"Mira" in turns(example)[-1][1] for example in built.examples} == {True}


async def test_only_the_newest_value_of_a_fact_is_taught(world):
    await world.say(fact("home", "Rome"), fact("home", "Oslo"))

    answers = {turns(example)[-1][1] for example in (await world.examples()).examples}

    assert answers == {"You live in Oslo.", "Your home is in Oslo."}


async def test_a_forgotten_fact_is_not_taught_even_if_forgotten_after_the_round_began(world):
    stated = await world.say(fact())
    await world.say(FactForgotten(subject="name"), FactForgotten(subject="name"))

    reading = Reading("local")
    await reading.read(world.log, upto=stated.offset)

    assert build(reading, PrivacyRules()).examples == []


async def test_facts_of_one_person_are_not_taught_to_a_model_that_answers_two(world):
    await world.say(fact())
    await world.say(imported(), user="ben")

    built = await world.examples()

    assert {example.kind for example in built.examples} == {"imported"}
    assert built.excluded["a fact about one person, and the model answers others too"] == 1


# --- deletion ------------------------------------------------------------------------------


async def test_nothing_of_a_deleted_conversation_is_used(world):
    await world.say(asked(content="I am from Oslo"), replied(), judged("rating", 1.0))
    await world.say(fact("origin", "Oslo", message="m1"), judged("demonstration", "Yes."))
    await world.say(asked("m2", "I am from Oslo", "c2"), replied("i2", "Ah!", "m2", "c2"))
    await world.say(judged("preference", "i1", "i2"), imported())
    assert len((await world.examples()).examples) > 5

    await world.say(ConversationDeleted(conversation="c1"))
    await world.say(ConversationDeleted(conversation="old1"))

    built = await world.examples()
    assert built.examples == []
    assert built.excluded["its conversation was deleted"] == 3


async def test_what_was_erased_from_the_log_is_missed_by_nobody(world):
    message = await world.say(asked(content="I am from Oslo"))
    await world.say(replied(), fact("origin", "Oslo", message="m1"))

    await world.log.erase([message.id])

    built = await world.examples()
    assert built.examples == []
    assert built.excluded == {"its conversation was deleted": 1}


async def test_other_tenants_are_not_read(world):
    await world.say(imported(), tenant="elsewhere")

    assert (await world.examples()).examples == []


# --- shares --------------------------------------------------------------------------------


async def test_one_account_does_not_drown_the_others(world):
    await world.say(*(imported(number) for number in range(100)))
    await world.say(*(imported(number) for number in range(100, 110)), user="ben")

    built = await world.examples(PrivacyRules(always=0))

    users = [example.user for example in built.examples]
    assert users.count("ben") == 10
    assert 25 <= users.count("owner") <= 35
    assert built.excluded["more than one account's share"] > 60
    newest = max(e.at for e in built.examples if e.user == "owner")
    oldest = min(e.at for e in built.examples if e.user == "owner")
    assert newest - oldest < timedelta(minutes=40)


# --- rounds --------------------------------------------------------------------------------


async def test_a_round_gets_a_dataset_of_what_was_there_when_it_began(world):
    last = await world.say(*(imported(number) for number in range(20)))
    await world.say(imported(99))
    round_started = RoundStarted(round="r1", because="test", upto=last.offset, new_messages=20)

    (said,) = await react(world.exporter, round_started)

    assert isinstance(said, DatasetExported)
    assert said.train + said.validation + said.heldout == 20
    assert said.heldout >= 2
    assert said.targets_by_kind == {"imported": 20}
    splits, manifest = world.writer.written[said.dataset]
    assert set(splits) == {"train", "validation", "heldout"}
    assert (manifest["round"], manifest["upto"], manifest["tenant"]) == ("r1", last.offset, "local")


async def test_a_round_is_told_what_people_said_more_than_once_whether_it_is_learnt_or_not(world):
    await world.say(
        asked("m1", "a lighthouse"),
        asked("m2", "the lighthouse once"),
        asked("m3", "gone gone", conversation="c2"),
        asked("m4", "gone", conversation="c2"),
    )
    last = await world.say(ConversationDeleted(conversation="c2"))

    (said,) = await react(
        world.exporter, RoundStarted(round="r1", because="asked", upto=last.offset, new_messages=4)
    )

    _, manifest = world.writer.written[said.dataset]
    assert manifest["said"] == {"lighthouse": 2}


async def test_the_same_log_gives_the_same_dataset(world):
    last = await world.say(*(imported(number) for number in range(20)))
    round_started = RoundStarted(round="r1", because="test", upto=last.offset, new_messages=20)

    first = await react(world.exporter, round_started)
    second = await react(world.exporter, round_started)

    assert first == second


async def test_too_little_material_is_refused_with_counts_and_reasons():
    world = World(ExampleRules(min_train=24))
    last = await world.say(asked(), replied(), imported())

    (said,) = await react(
        world.exporter,
        RoundStarted(round="r1", because="test", upto=last.offset, new_messages=2),
    )

    assert isinstance(said, DatasetRefused)
    assert "1 training examples, at least 24 are needed" in said.because
    assert said.because.endswith("(left out: 1 as nobody judged it)")
    assert world.writer.written == {}


async def test_an_empty_log_is_refused_without_reasons():
    world = World(ExampleRules(min_train=1))

    (said,) = await react(
        world.exporter, RoundStarted(round="r1", because="test", upto=0, new_messages=0)
    )

    assert isinstance(said, DatasetRefused)
    assert "left out" not in said.because


# --- questions -----------------------------------------------------------------------------


async def test_everything_can_be_exported_at_any_time(world):
    await world.say(imported(1))
    await world.say(imported(2), user="ben")

    everything = await world.exporter.export()
    bens = await world.exporter.export(user="ben")

    assert everything["targets_by_kind"] == {"imported": 2}
    assert bens["targets_by_kind"] == {"imported": 1}
    splits, manifest = world.writer.written[bens["dataset"]]
    assert {e.user for examples in splits.values() for e in examples} == {"ben"}
    assert manifest["user"] == "ben"


async def test_statistics_say_what_is_usable_and_which_dataset_is_the_latest(world):
    await world.say(imported(), asked(), replied())
    assert await world.exporter.latest() is None
    exported = DatasetExported(
        round="r1",
        dataset="d1",
        path="p",
        train=1,
        validation=0,
        heldout=0,
        preferences=0,
        targets_by_kind={},
    )
    await world.say(exported)
    await world.say(exported.model_copy(update={"dataset": "d2"}), tenant="elsewhere")

    statistics = await world.exporter.statistics()

    assert statistics["targets_by_kind"] == {"imported": 1}
    assert statistics["excluded"] == {"nobody judged it": 1}
    assert statistics["latest"]["dataset"] == "d1"


async def test_statistics_go_through_the_log_again_only_for_what_counts(world, monkeypatch):
    await world.say(imported(), asked(), replied())
    first, read, handed_out = await world.exporter.statistics(), world.log.read, []

    async def counted(*arguments, **options):
        batch = await read(*arguments, **options)
        handed_out.extend(batch.envelopes)
        return batch

    monkeypatch.setattr(world.log, "read", counted)
    await world.say(RoundStarted(round="r", because="", upto=0, new_messages=0))
    again = await world.exporter.statistics()
    assert again == first
    assert handed_out == []

    await world.say(imported(2))
    assert (await world.exporter.statistics())["targets_by_kind"] == {"imported": 2}


async def test_statistics_follow_an_erasure_that_comes_after_the_deletion(world):
    said = await world.say(imported(), asked())
    reply = await world.say(replied())
    await world.say(ConversationDeleted(conversation="c1"))
    before = await world.exporter.statistics()

    await world.log.erase([said.id, reply.id])

    fresh = World()
    fresh.exporter._log = world.log
    after = await world.exporter.statistics()
    assert after == await fresh.exporter.statistics()
    assert after["excluded"] != before["excluded"]


async def test_other_events_say_nothing_about_material(world):
    reading = Reading("local")

    reading.hear(await world.say(RoundStarted(round="r", because="", upto=0, new_messages=0)))

    assert build(reading, PrivacyRules()).examples == []
