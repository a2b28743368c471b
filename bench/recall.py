"""What was said before, beside a question: what finding it costs, how often it is right, what it is worth.

`python -m bench.recall` keeps chats of the corpus as one person's, with eleven things told among
them, and looks up what belongs to questions. Its peer goes through all of the person's newest
messages by meaning, as `GET /api/memory/search` does. With `--answers` the first model is asked
the eleven questions with and without what was found.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, cast

from arbiters.conversation_history import ConversationHistory
from arbiters.events import ChatMessage
from arbiters.kernel.directory import Directory
from arbiters.records import StoredMessage
from bench.corpus import dialogues
from soma_agents.language.engine import Engine
from soma_agents.language.model import load_model
from soma_agents.language.requests import Piece
from soma_agents.language.sampling import Sampling
from soma_agents.serving.embeddings import Embeddings
from soma_agents.serving.memories import Memories
from soma_agents.serving.specialist import Known, Specialist
from soma_agents.storage.conversations import SqliteConversationStore
from soma_agents.storage.database import Database

TARGET_MS = 10.0
LONGEST = 200
"""Characters of a message of a chat."""
QUESTIONS = 200
ME = ("local", "owner")
TOLD = (
    ("We keep our spare key under the blue flower pot.", "Where is the spare key?", "flower pot"),
    (
        "Our camping trip to the lake is planned for the third of August.",
        "When is our camping trip?",
        "August",
    ),
    (
        "Yesterday I planted tulips behind the garage.",
        "What did I plant behind the garage?",
        "tulips",
    ),
    ("The plumber who repaired the sink was called Gregor.", "Who repaired the sink?", "Gregor"),
    (
        "Tomorrow my piano lesson begins at half past four.",
        "When does my piano lesson begin?",
        "half past four",
    ),
    (
        "I parked the car on level three of the station garage.",
        "On which level did I park the car?",
        "three",
    ),
    (
        "For the party we ordered forty pancakes.",
        "How many pancakes did we order for the party?",
        "forty",
    ),
    (
        "My grandmother grew up on an island called Hiddensee.",
        "On which island did my grandmother grow up?",
        "Hiddensee",
    ),
    (
        "My next dentist appointment is in October.",
        "When is my next dentist appointment?",
        "October",
    ),
    ("Last summer we cycled from Passau to Vienna.", "Where did we cycle last summer?", "Vienna"),
    (
        "The neighbours' boat is named Seagull.",
        "What is the name of the neighbours' boat?",
        "Seagull",
    ),
)
"""What a person tells, what they ask another day, and what a good answer has in it."""


GENERAL = (
    ("What is the capital of Japan?", "Tokyo"),
    ("How many days does a week have?", "7"),
    ("What is the chemical symbol of water?", "H2O"),
    ("Who wrote Romeo and Juliet?", "Shakespeare"),
    ("What is the capital of France?", "Paris"),
    ("What colour is the sky on a clear day?", "blue"),
    ("What is the capital of Italy?", "Rome"),
    ("What is the opposite of hot?", "cold"),
    ("Which planet do we live on?", "Earth"),
    ("What do bees make?", "honey"),
    ("In which ocean is Hawaii?", "Pacific"),
)


class Here:
    """A directory of one arbiter in this process."""

    def __init__(self, history: ConversationHistory) -> None:
        self._history = history

    async def ask(self, arbiter: str, question: str, *, at_least: int = 0, **arguments: Any) -> Any:
        """See `Directory.ask`."""
        assert (arbiter, at_least) == (self._history.name, 0)
        return await getattr(self._history, question)(**arguments)


def chats() -> tuple[list[str], list[str]]:
    """What people say in chats of the corpus, and what they ask; none where it is absent."""
    said = [turn for talk in dialogues("dialogue-train.jsonl.zst", 40_000) for turn in talk[::2]]
    said = [turn for turn in dict.fromkeys(said) if len(turn) < LONGEST]
    return [s for s in said if not s.endswith("?")], [s for s in said if s.endswith("?")]


async def keep(store: SqliteConversationStore, texts: Sequence[str]) -> None:
    """Each in a conversation of its own."""
    for number, text in enumerate(texts):
        message = StoredMessage(
            id=str(number),
            conversation=f"talk {number}",
            role="user",
            content=text,
            at=datetime(2026, 3, 1, tzinfo=UTC),
            trust="owner",
        )
        await store.add_message(*ME, message)


async def looked_up(memories: Memories, question: str) -> tuple[tuple[str, ...], float]:
    """What belongs to a question, and the milliseconds it took."""
    began = time.perf_counter()
    asked = [ChatMessage(role="user", content=question)]
    found = await memories.of(*ME, asked, conversation="now", at_least=0)
    return found, (time.perf_counter() - began) * 1e3


async def measure(messages: int, embeddings: Embeddings) -> dict[str, float]:
    """Of so many messages kept: milliseconds, and shares of questions with something beside them."""
    said, questions = chats()
    if len(said) < messages:
        raise SystemExit("bench.recall needs ../shared/corpus beside the project")
    every = len(said) // messages
    texts = [*said[: every * messages : every], *(told for told, *_ in TOLD)]
    asked = questions[:: len(questions) // QUESTIONS]
    with tempfile.TemporaryDirectory() as folder:
        database = await Database.open(Path(folder) / "talk.db", SqliteConversationStore.schema)
        store = SqliteConversationStore(database)
        async with database.transaction():
            await keep(store, texts)
        memories = Memories(cast("Directory", Here(ConversationHistory(store=store))), embeddings)
        await looked_up(memories, asked[0])
        found = [await looked_up(memories, question) for question in asked]
        right = [
            (await looked_up(memories, question))[0][:1] == (told,) for told, question, _ in TOLD
        ]
        began = time.perf_counter()
        newest = await store.newest(*ME, limit=5_000)
        await embeddings.near(asked[0], [message.content for message in newest], 10)
        whole = (time.perf_counter() - began) * 1e3
        await database.close()
    times = sorted(ms for _, ms in found)
    return {
        "messages": len(texts),
        "p50_ms": round(median(times), 2),
        "p95_ms": round(times[len(times) * 95 // 100], 2),
        "peer_ms": round(whole, 1),
        "told_found": sum(right) / len(right),
        "others_with_a_quotation": round(sum(bool(quotes) for quotes, _ in found) / len(found), 4),
    }


async def answers() -> dict[str, int]:
    """How many of the eleven the first model knows, without and with what was said before.

    `general` is how many general questions it answers well, `beside` the same with a sentence that
    has nothing to do with them.
    """
    model = load_model("smollm2")
    engine = Engine(model, slots=1)
    await asyncio.to_thread(engine.start)

    async def right(question: str, answer: str, *said: str) -> bool:
        asked, known = [ChatMessage(role="user", content=question)], Known(said=said)
        sampling = Sampling(temperature=0, max_tokens=32)
        prepared = Specialist(model).chat(asked, sampling, adapter=None, known=known, tenant="")
        pieces = [i.text async for i in engine.generate(prepared.request) if isinstance(i, Piece)]
        return answer in "".join(pieces)

    found = {"of": len(TOLD), "without": 0, "with": 0, "general": 0, "beside": 0}
    for told, question, answer in TOLD:
        found["without"] += await right(question, answer)
        found["with"] += await right(question, answer, told)
    for (told, *_), (question, answer) in zip(TOLD, GENERAL, strict=True):
        found["general"] += await right(question, answer)
        found["beside"] += await right(question, answer, told)
    await engine.close()
    return found


async def run(*, with_answers: bool) -> dict[str, Any]:
    """All of it."""
    embeddings = Embeddings.of("")
    few, many = await measure(1_000, embeddings), await measure(10_000, embeddings)
    embeddings.close()
    return {
        "ok": many["p50_ms"] <= TARGET_MS and few["told_found"] == 1,
        "figure": many["p50_ms"],
        "target": TARGET_MS,
        "unit": "ms",
        "ratio": round(many["peer_ms"] / many["p50_ms"], 1),
        "kept": [few, many],
    } | ({"answers": await answers()} if with_answers else {})


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", action="store_true", help="ask the first model, too")
    found = asyncio.run(run(with_answers=parser.parse_args().answers))
    print(json.dumps(found))
    sys.exit(not found["ok"])


if __name__ == "__main__":
    main()
