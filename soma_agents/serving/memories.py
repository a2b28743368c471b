"""What the person who asks said before, in other conversations, that belongs to the question.

Looked up for each question and kept nowhere: what was deleted is gone from the next answer on.
"""

import asyncio
from collections.abc import Sequence

import structlog

from arbiters.errors import SomaError
from arbiters.events import ChatMessage
from arbiters.kernel.directory import Directory
from policies.memory.recall import asked, beginnings, quoted, worth_comparing
from soma_agents.serving.embeddings import Embeddings

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 0.5
"""A chat goes on without what was said before rather than wait longer for it."""
MESSAGES = 20
"""Looked through for one question."""
SENTENCES = 30
"""Compared with one question by meaning: some five milliseconds of work."""


class Memories:
    """Finds by words what may matter, and by meaning what does."""

    def __init__(self, directory: Directory, embeddings: Embeddings) -> None:
        self._directory = directory
        self._embeddings = embeddings

    async def of(
        self,
        tenant: str,
        user: str,
        messages: Sequence[ChatMessage],
        *,
        conversation: str,
        at_least: int,
    ) -> tuple[str, ...]:
        """Sentences the user said outside this conversation that fit its last message, likest first."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self._find(tenant, user, messages, conversation, at_least)
        except (SomaError, TimeoutError) as error:
            log.warning("answering without what was said before", error=repr(error))
            return ()

    async def _find(
        self,
        tenant: str,
        user: str,
        messages: Sequence[ChatMessage],
        conversation: str,
        at_least: int,
    ) -> tuple[str, ...]:
        question = asked(messages[-1].content)
        wanted = beginnings(question)
        if not wanted:
            return ()
        found = await self._directory.ask(
            "conversation_history",
            "mentions",
            at_least=at_least,
            tenant=tenant,
            user=user,
            beginnings=wanted,
            apart_from=conversation,
            limit=MESSAGES,
        )
        said = "\n".join(message.content for message in messages)
        sentences = worth_comparing(question, [m.content for m in found], said=said)[:SENTENCES]
        if not sentences:
            return ()
        near = await self._embeddings.near(question, sentences, len(sentences))
        return quoted([(sentences[number], cosine) for number, cosine in near])
