from dataclasses import replace

import pytest

from arbiters.records import StoredFeedback, StoredMessage

ME = ("local", "owner")


def message(name, at, content="hello there", **fields):
    base = StoredMessage(
        id=name, conversation="talk", role="user", content=content, at=at, trust="owner"
    )
    return replace(base, **fields)


def judgement(name, at, target="inf", **fields):
    base = StoredFeedback(
        id=name,
        target=target,
        target_kind="inference",
        name="rating",
        value=1.0,
        source="HUMAN",
        rationale="",
        at=at,
    )
    return replace(base, **fields)


async def ids(found):
    return [each.id for each in await found]


async def test_messages_come_back_as_they_were_in_their_order(conversations, at):
    first = message("m1", at(0), "ça va? 你好 😀")
    second = message(
        "m2", at(1), role="assistant", trust="self", inference="inf", model="x", specialist="s"
    )

    assert await conversations.add_message(*ME, first)
    assert await conversations.add_message(*ME, second)

    assert await conversations.messages(*ME, "talk") == [first, second]


async def test_a_known_message_is_not_added_again(conversations, at):
    await conversations.add_message(*ME, message("m1", at(0)))

    assert not await conversations.add_message(*ME, message("m1", at(1), "other words"))

    (kept,) = await conversations.messages(*ME, "talk")
    assert kept.content == "hello there"
    assert (await conversations.conversations(*ME))[0].messages == 1


async def test_pages_go_back_from_the_newest(conversations, at):
    for n in range(5):
        await conversations.add_message(*ME, message(f"m{n}", at(n)))

    assert await ids(conversations.messages(*ME, "talk", limit=2)) == ["m3", "m4"]
    assert await ids(conversations.messages(*ME, "talk", limit=2, before="m3")) == ["m1", "m2"]
    assert await ids(conversations.messages(*ME, "talk", before="m0")) == []
    assert await ids(conversations.messages(*ME, "talk", before="unknown")) == []


async def test_the_first_words_are_the_title_of_a_chat(conversations, at):
    await conversations.add_message(*ME, message("m1", at(0), "  " + "word " * 40))
    await conversations.add_message(*ME, message("m2", at(3), "more"))

    (summary,) = await conversations.conversations(*ME)

    assert summary.title == ("word " * 40)[:80]
    assert (summary.id, summary.source, summary.messages) == ("talk", "chat", 2)
    assert (summary.started_at, summary.last_at) == (at(0), at(3))


async def test_conversations_are_listed_by_their_last_message(conversations, at):
    for minute, talk in enumerate(["a", "b", "a", "c"]):
        await conversations.add_message(*ME, message(f"m{minute}", at(minute), conversation=talk))

    assert await ids(conversations.conversations(*ME)) == ["c", "a", "b"]
    assert await ids(conversations.conversations(*ME, limit=1, offset=1)) == ["a"]


async def test_a_conversation_is_imported_once(conversations, at):
    facts = {"source": "chatgpt", "title": "Cats", "at": at(0)}

    assert await conversations.add_conversation(*ME, "one", digest="d1", **facts)

    assert not await conversations.add_conversation(*ME, "one", digest="d2", **facts)
    assert not await conversations.add_conversation(*ME, "two", digest="d1", **facts)
    assert await conversations.add_conversation("local", "eve", "one", digest="d1", **facts)
    assert (await conversations.conversations(*ME))[0].title == "Cats"


async def test_conversations_without_a_digest_are_not_each_others_duplicates(conversations, at):
    facts = {"source": "text", "title": "", "digest": "", "at": at(0)}

    assert await conversations.add_conversation(*ME, "one", **facts)
    assert await conversations.add_conversation(*ME, "two", **facts)


async def test_nobody_sees_another_persons_words(conversations, at):
    await conversations.add_message(*ME, message("m1", at(0), "secret plan", inference="inf"))
    await conversations.add_feedback(*ME, judgement("f1", at(0)))

    for stranger in (("local", "eve"), ("office", "owner")):
        assert await conversations.messages(*stranger, "talk") == []
        assert await conversations.conversations(*stranger) == []
        assert await conversations.search(*stranger, "secret") == []
        assert await conversations.feedback(*stranger, "inf") == []
        assert await conversations.inference(*stranger, "inf") is None
        assert not await conversations.delete(*stranger, "talk")
        assert set((await conversations.statistics(*stranger)).values()) == {0}


async def test_what_the_user_wrote_elsewhere_is_found_by_how_words_begin(conversations, at):
    for number, (name, content, fields) in enumerate(
        [
            ("one", "The trains are late", {}),
            ("two", "Training a late train", {}),
            ("here", "a train", {"conversation": "here"}),
            ("soma", "the train", {"role": "assistant"}),
            ("file", "the train", {"trust": "imported"}),
            ("other", "a boat", {}),
        ]
    ):
        await conversations.add_message(*ME, message(name, at(number), content, **fields))
    await conversations.add_message("local", "eve", message("eve", at(9), "train"))

    found = await ids(conversations.mentions(*ME, ("trai", 'LATE"'), apart_from="here"))

    assert sorted(found) == ["one", "two"]
    assert len(await conversations.mentions(*ME, ("trai",), apart_from="here", limit=1)) == 1
    assert await conversations.mentions(*ME, (), apart_from="here") == []


async def test_search_finds_messages_with_every_word(conversations, at):
    await conversations.add_message(*ME, message("both", at(0), "The cat sat on the Mat."))
    await conversations.add_message(*ME, message("one", at(1), "A cat, nothing else"))

    assert await ids(conversations.search(*ME, "CAT mat")) == ["both"]
    assert set(await ids(conversations.search(*ME, "cat"))) == {"both", "one"}
    assert await ids(conversations.search(*ME, "cat", limit=1)) != []
    assert await ids(conversations.search(*ME, "dog")) == []


@pytest.mark.parametrize("words", ["", "  ", '"', "* ( )", "NEAR", 'cat" OR "dog', "a:b -c", "^"])
async def test_search_takes_any_text_for_words(conversations, at, words):
    await conversations.add_message(*ME, message("m1", at(0), "the cat"))

    assert await ids(conversations.search(*ME, words)) == []


async def test_deleting_removes_messages_their_feedback_and_what_search_finds(conversations, at):
    await conversations.add_message(*ME, message("m1", at(0), "hidden words"))
    await conversations.add_message(
        *ME, message("m2", at(1), "an answer", role="assistant", inference="inf")
    )
    await conversations.add_message(*ME, message("m3", at(2), "hidden too", conversation="other"))
    await conversations.add_feedback(*ME, judgement("f1", at(2)))
    await conversations.add_feedback(
        *ME, judgement("f2", at(2), target="talk", target_kind="conversation")
    )
    await conversations.add_feedback(*ME, judgement("f3", at(2), target="elsewhere"))

    assert await conversations.delete(*ME, "talk")

    assert not await conversations.delete(*ME, "talk")
    assert await conversations.messages(*ME, "talk") == []
    assert await conversations.feedback(*ME, "inf") == []
    assert await conversations.feedback(*ME, "talk") == []
    assert await ids(conversations.feedback(*ME, "elsewhere")) == ["f3"]
    assert await ids(conversations.search(*ME, "hidden")) == ["m3"]


async def test_what_was_deleted_can_be_imported_again(conversations, at):
    facts = {"source": "text", "title": "", "digest": "d", "at": at(0)}
    await conversations.add_conversation(*ME, "one", **facts)
    await conversations.delete(*ME, "one")

    assert await conversations.add_conversation(*ME, "one", **facts)


async def test_the_newest_of_all_conversations_come_first_and_only_ones_own(conversations, at):
    for n, talk in enumerate(("a", "b", "a", "b")):
        await conversations.add_message(*ME, message(f"m{n}", at(n), conversation=talk))
    await conversations.add_message("local", "eve", message("hers", at(9)))
    await conversations.add_message("elsewhere", "owner", message("theirs", at(9)))

    assert await ids(conversations.newest(*ME, limit=3)) == ["m3", "m2", "m1"]
    await conversations.delete(*ME, "b")
    assert await ids(conversations.newest(*ME, limit=3)) == ["m2", "m0"]


@pytest.mark.parametrize("value", [0.5, -1.0, "a better answer", "1.0"])
async def test_feedback_keeps_its_value_and_type(conversations, at, value):
    given = judgement("f1", at(0), value=value, rationale="because")

    assert await conversations.add_feedback(*ME, given)

    (kept,) = await conversations.feedback(*ME, "inf")
    assert kept == given
    assert type(kept.value) is type(value)


async def test_feedback_twice_is_kept_once_in_order(conversations, at):
    await conversations.add_feedback(*ME, judgement("f1", at(0)))
    await conversations.add_feedback(*ME, judgement("f2", at(1)))

    assert not await conversations.add_feedback(*ME, judgement("f1", at(2), value=-1.0))

    assert await ids(conversations.feedback(*ME, "inf")) == ["f1", "f2"]


async def test_a_reply_is_found_by_its_inference(conversations, at):
    reply = message("m2", at(1), role="assistant", inference="inf", model="lora-1")
    await conversations.add_message(*ME, message("m1", at(0)))
    await conversations.add_message(*ME, reply)

    assert await conversations.inference(*ME, "inf") == reply
    assert await conversations.inference(*ME, "none") is None
    assert await conversations.inference(*ME, "") is None


async def test_statistics_count_what_there_is(conversations, at):
    await conversations.add_message(*ME, message("m1", at(0), "one two three"))
    await conversations.add_message(*ME, message("m2", at(1), "four", role="assistant"))
    await conversations.add_feedback(*ME, judgement("f1", at(2)))

    assert await conversations.statistics(*ME) == {
        "conversations": 1,
        "messages": 2,
        "words": 4,
        "feedback": 1,
        "system": 0,
        "user": 1,
        "assistant": 1,
    }
