import pytest

from arbiters.conversation_history import ConversationHistory
from arbiters.errors import NotFoundError
from arbiters.events import (
    ChatMessage,
    ConversationDeleted,
    ConversationImported,
    FeedbackGiven,
    MessageReceived,
    ReplyGiven,
    Timings,
)
from arbiters.testing import MemoryConversationStore, react

WHO = {"tenant": "local", "user": "owner"}


@pytest.fixture
def history():
    return ConversationHistory(store=MemoryConversationStore())


def asked(message="m1", content="Hello", conversation="c1", **rest):
    return MessageReceived(conversation=conversation, message=message, content=content, **rest)


def replied(inference="i1", content="Hi!", message="m1", conversation="c1"):
    return ReplyGiven(
        conversation=conversation,
        message=message,
        inference=inference,
        content=content,
        model="base-1",
        specialist="personal",
        config_hash="0",
        finish="stop",
        timings=Timings(first_token=0.1, total=0.2, prompt_tokens=3, completion_tokens=2),
    )


def imported(conversation="old", digest="abc", title="", role="user"):
    turns = (
        ChatMessage(role=role, content="Is tea hot?\nI wonder."),
        ChatMessage(role="assistant", content="Yes."),
    )
    return ConversationImported(
        conversation=conversation, digest=digest, source="text", title=title, messages=turns
    )


def turns(messages):
    return [(message.role, message.content) for message in messages]


async def test_a_message_and_its_reply_are_kept_in_order(history):
    await react(history, asked())
    await react(history, replied())

    kept = await history.history(**WHO, conversation="c1")
    assert turns(kept) == [("user", "Hello"), ("assistant", "Hi!")]
    assert [(m.trust, m.inference, m.model) for m in kept] == [
        ("owner", "", ""),
        ("self", "i1", "base-1"),
    ]
    assert await history.history(**WHO, conversation="c1", before="i1") == kept[:1]


async def test_hearing_the_same_event_again_changes_nothing(history):
    for _ in range(2):
        await react(history, asked(context=(ChatMessage(role="system", content="Be brief."),)))
        await react(history, replied())

    assert len(await history.history(**WHO, conversation="c1")) == 3


async def test_the_context_of_a_stateless_client_is_kept_once(history):
    system = ChatMessage(role="system", content="Be brief.")
    hello, hi = (
        ChatMessage(role="user", content="Hello"),
        ChatMessage(role="assistant", content="Hi!"),
    )

    await react(history, asked(context=(system,)))
    await react(history, replied())
    await react(history, asked("m2", "Hello", context=(system, hello, hi)))

    kept = await history.history(**WHO, conversation="c1")
    assert turns(kept) == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi!"),
        ("user", "Hello"),
    ]


async def test_what_a_client_puts_into_our_mouth_is_not_trusted(history):
    context = (
        ChatMessage(role="user", content="Who are you?"),
        ChatMessage(role="assistant", content="The queen."),
    )

    await react(history, asked(context=context))

    kept = await history.history(**WHO, conversation="c1")
    assert [message.trust for message in kept] == ["owner", "external", "owner"]
    assert kept[0].at < kept[1].at < kept[2].at


async def test_a_reply_that_comes_after_the_deletion_is_not_kept(history):
    await react(history, asked())
    await react(history, ConversationDeleted(conversation="c1"))

    await react(history, replied())

    assert await history.history(**WHO, conversation="c1") == []
    assert not await history.exists(**WHO, target="i1", kind="inference")


async def test_an_imported_conversation_is_kept_once_by_its_content(history):
    await react(history, imported())
    await react(history, imported(conversation="again"))

    (summary,) = await history.conversations(**WHO)
    assert (summary.id, summary.title, summary.messages) == ("old", "Is tea hot?", 2)
    kept = await history.history(**WHO, conversation="old")
    assert {message.trust for message in kept} == {"imported"}


async def test_an_imported_conversation_keeps_its_title_or_has_none(history):
    await react(history, imported(title="Tea"))
    await react(history, imported(conversation="other", digest="def", role="system"))

    assert {s.title for s in await history.conversations(**WHO)} == {"Tea", ""}


async def test_judgements_are_kept_and_found_by_what_they_judge(history):
    await react(history, asked())
    await react(history, replied())
    await react(
        history,
        FeedbackGiven(
            feedback="f1", target="i1", target_kind="inference", name="rating", value=1.0
        ),
    )

    (judgement,) = await history.feedback(**WHO, target="i1")
    assert (judgement.name, judgement.value, judgement.source) == ("rating", 1.0, "HUMAN")
    reply = await history.inference(**WHO, inference="i1")
    assert reply is not None
    assert reply.content == "Hi!"
    assert await history.exists(**WHO, target="i1", kind="inference")
    assert await history.exists(**WHO, target="c1", kind="conversation")
    assert not await history.exists(**WHO, target="c2", kind="conversation")


async def test_words_are_found_and_counted(history):
    await react(history, asked(content="I like green tea"))
    await react(history, asked("m2", "I like coffee"))

    (found,) = await history.search(**WHO, words="tea like")
    assert found.content == "I like green tea"
    assert (await history.statistics(**WHO))["messages"] == 2
    assert [m.content for m in await history.newest(**WHO, limit=1)] == ["I like coffee"]


async def test_conversations_are_exported_as_chat_messages(history):
    await react(history, imported())
    await react(history, asked())

    one = await history.export(**WHO, conversation="c1")
    everything = await history.export_all(**WHO)

    assert one["messages"] == [{"role": "user", "content": "Hello"}]
    assert {exported["conversation"] for exported in everything} == {"c1", "old"}
    assert one in everything


async def test_exporting_an_unknown_conversation_says_which(history):
    with pytest.raises(NotFoundError, match="'c9'"):
        await history.export(**WHO, conversation="c9")


async def test_users_do_not_see_each_other(history):
    await react(history, asked(), user="mira")

    assert await history.history(**WHO, conversation="c1") == []
    assert await history.export_all(tenant="local", user="mira")
