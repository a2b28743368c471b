"""What was said before beside a question: measured on what real people wrote in chats."""

import pytest

from arbiters.conversation_history import ConversationHistory
from arbiters.errors import UnavailableError
from arbiters.events import ChatMessage
from bench.recall import ME, TOLD, Here, chats, keep
from soma_agents.serving import memories
from soma_agents.serving.embeddings import Embeddings
from soma_agents.serving.memories import Memories
from soma_agents.storage.conversations import SqliteConversationStore
from soma_agents.storage.database import Database


class Away:
    """A directory whose arbiter does not answer."""

    async def ask(self, *_, **__):
        raise UnavailableError("away")


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """The first comparison in a process loads tables; a machine may be busy."""
    monkeypatch.setattr(memories, "PATIENCE_SECONDS", 30)


@pytest.fixture
def embeddings():
    made = Embeddings.of("")
    yield made
    made.close()


@pytest.fixture
async def remember(tmp_path, embeddings):
    """Keep messages, each in a conversation of its own; then ask."""
    database = await Database.open(tmp_path / "talk.db", SqliteConversationStore.schema)
    store = SqliteConversationStore(database)

    async def kept(*texts):
        async with database.transaction():
            await keep(store, texts)
        found = Memories(Here(ConversationHistory(store=store)), embeddings)
        return lambda question, conversation="now": ask(found, question, conversation)

    yield kept
    await database.close()


async def ask(found, question, conversation="now"):
    messages = [ChatMessage(role="user", content=question)]
    return await found.of(*ME, messages, conversation=conversation, at_least=0)


async def test_what_was_told_among_a_thousand_messages_comes_back_and_little_else(remember):
    said, questions = chats()
    if not said:
        pytest.skip("no ../shared/corpus beside the project")
    told = [told for told, *_ in TOLD]
    recall = await remember(*said[:: len(said) // 1000], *told)

    found = [await recall(question) for _, question, _ in TOLD]
    others = [await recall(question) for question in questions[:: len(questions) // 100]]

    assert [quotes[0] for quotes in found] == told
    assert sum(map(bool, others)) <= 0.03 * len(others)


async def test_the_conversation_itself_is_left_out(remember):
    recall = await remember(TOLD[0][0])

    assert await recall(TOLD[0][1]) == (TOLD[0][0],)
    assert await recall(TOLD[0][1], "talk 0") == ()


async def test_an_arbiter_that_is_away_costs_the_memory_not_the_answer(embeddings):
    assert await ask(Memories(Away(), embeddings), TOLD[0][1]) == ()
