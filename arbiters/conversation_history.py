"""ConversationHistory: every message for ever, until a person deletes it."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar, Literal

from arbiters.envelope import Envelope
from arbiters.errors import NotFoundError
from arbiters.events import (
    ChatMessage,
    ConversationDeleted,
    ConversationImported,
    FeedbackGiven,
    MessageReceived,
    ReplyGiven,
)
from arbiters.kernel.arbiter import Arbiter, Said, on, query
from arbiters.records import ConversationSummary, StoredFeedback, StoredMessage
from arbiters.stores import ConversationStore

WHOLE = 1_000_000
"""More messages than a conversation has."""
PAGE = 500


class ConversationHistory(Arbiter):
    """Keeps what was said and what was thought of it, and finds it again."""

    name: ClassVar[str] = "conversation_history"

    def __init__(self, *, store: ConversationStore) -> None:
        self._store = store

    # --- hearing ---------------------------------------------------------------------------

    @on(MessageReceived)
    async def keep_message(self, event: MessageReceived, envelope: Envelope) -> Said:
        """Keep a message, and of the context before it what is not kept yet."""
        for message in await self._new_context(event, envelope):
            await self._store.add_message(envelope.tenant, envelope.user, message)
        await self._store.add_message(
            envelope.tenant,
            envelope.user,
            StoredMessage(
                id=event.message,
                conversation=event.conversation,
                role="user",
                content=event.content,
                at=envelope.at,
                trust=event.trust,
            ),
        )
        return
        yield

    @on(ReplyGiven)
    async def keep_reply(self, event: ReplyGiven, envelope: Envelope) -> Said:
        """Keep a reply, unless its conversation was deleted while it was being written."""
        tenant, user = envelope.tenant, envelope.user
        if await self._store.messages(tenant, user, event.conversation, limit=1):
            reply = StoredMessage(
                id=event.inference,
                conversation=event.conversation,
                role="assistant",
                content=event.content,
                at=envelope.at,
                trust="self",
                inference=event.inference,
                model=event.model,
                specialist=event.specialist,
            )
            await self._store.add_message(tenant, user, reply)
        return
        yield

    @on(ConversationImported)
    async def keep_imported(self, event: ConversationImported, envelope: Envelope) -> Said:
        """Keep a conversation from a file, once."""
        tenant, user = envelope.tenant, envelope.user
        at = event.happened_at or envelope.at
        is_new = await self._store.add_conversation(
            tenant,
            user,
            event.conversation,
            source=event.source,
            title=event.title or _title(event.messages),
            digest=event.digest,
            at=at,
        )
        for number, message in enumerate(event.messages if is_new else ()):
            await self._store.add_message(
                tenant,
                user,
                StoredMessage(
                    id=f"{event.conversation}/{number}",
                    conversation=event.conversation,
                    role=message.role,
                    content=message.content,
                    at=at + timedelta(microseconds=number),
                    trust="imported",
                ),
            )
        return
        yield

    @on(ConversationDeleted)
    async def drop(self, event: ConversationDeleted, envelope: Envelope) -> Said:
        """Forget a conversation with everything that was said about it."""
        await self._store.delete(envelope.tenant, envelope.user, event.conversation)
        return
        yield

    @on(FeedbackGiven)
    async def keep_feedback(self, event: FeedbackGiven, envelope: Envelope) -> Said:
        """Keep a judgement."""
        judgement = StoredFeedback(
            id=event.feedback,
            target=event.target,
            target_kind=event.target_kind,
            name=event.name,
            value=event.value,
            source=event.source,
            rationale=event.rationale,
            at=envelope.at,
        )
        await self._store.add_feedback(envelope.tenant, envelope.user, judgement)
        return
        yield

    async def _new_context(
        self, event: MessageReceived, envelope: Envelope
    ) -> Sequence[StoredMessage]:
        """The turns a stateless client sent along that are not in the conversation yet."""
        if not event.context:
            return []
        kept = await self._store.messages(
            envelope.tenant, envelope.user, event.conversation, limit=WHOLE
        )
        known = Counter((message.role, message.content) for message in kept)
        new: list[StoredMessage] = []
        for number, turn in enumerate(event.context):
            if known[turn.role, turn.content] > 0:
                known[turn.role, turn.content] -= 1
                continue
            before = timedelta(microseconds=len(event.context) - number)
            new.append(
                StoredMessage(
                    id=f"{event.message}/{number}",
                    conversation=event.conversation,
                    role=turn.role,
                    content=turn.content,
                    at=envelope.at - before,
                    # A client may put any words into SOMA's mouth.
                    trust=event.trust if turn.role == "user" else "external",
                )
            )
        return new

    # --- answering -------------------------------------------------------------------------

    @query
    async def history(
        self,
        tenant: str,
        user: str,
        conversation: str,
        limit: int = 200,
        before: str | None = None,
    ) -> list[StoredMessage]:
        """The newest messages (before message `before`), oldest first."""
        return await self._store.messages(tenant, user, conversation, limit=limit, before=before)

    @query
    async def conversations(
        self, tenant: str, user: str, limit: int = 50, offset: int = 0
    ) -> list[ConversationSummary]:
        """Newest first."""
        return await self._store.conversations(tenant, user, limit=limit, offset=offset)

    @query
    async def search(
        self, tenant: str, user: str, words: str, limit: int = 20
    ) -> list[StoredMessage]:
        """Messages that contain every one of the words, best match first."""
        return await self._store.search(tenant, user, words, limit=limit)

    @query
    async def mentions(
        self, tenant: str, user: str, beginnings: Sequence[str], apart_from: str, limit: int = 20
    ) -> list[StoredMessage]:
        """What the user wrote in other conversations with words that begin so, best match first."""
        return await self._store.mentions(
            tenant, user, beginnings, apart_from=apart_from, limit=limit
        )

    @query
    async def newest(self, tenant: str, user: str, limit: int) -> list[StoredMessage]:
        """The last messages of all conversations, newest first."""
        return await self._store.newest(tenant, user, limit=limit)

    @query
    async def statistics(self, tenant: str, user: str) -> dict[str, int]:
        """How many conversations, messages, words, judgements, and messages per role."""
        return await self._store.statistics(tenant, user)

    @query
    async def export(self, tenant: str, user: str, conversation: str) -> dict[str, Any]:
        """One conversation as chat messages.

        Raises:
            NotFoundError: the user has none with this id.
        """
        for exported in await self._export(tenant, user, only=conversation):
            return exported
        raise NotFoundError(f"there is no conversation {conversation!r}")

    @query
    async def export_all(self, tenant: str, user: str) -> list[dict[str, Any]]:
        """Every conversation as chat messages, newest first."""
        return await self._export(tenant, user, only=None)

    async def _export(self, tenant: str, user: str, *, only: str | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        offset = 0
        while page := await self._store.conversations(tenant, user, limit=PAGE, offset=offset):
            offset += len(page)
            for summary in page:
                if only in {None, summary.id}:
                    messages = await self._store.messages(tenant, user, summary.id, limit=WHOLE)
                    found.append(_exported(summary, messages))
        return found

    @query
    async def inference(self, tenant: str, user: str, inference: str) -> StoredMessage | None:
        """The reply that an inference gave."""
        return await self._store.inference(tenant, user, inference)

    @query
    async def feedback(self, tenant: str, user: str, target: str) -> list[StoredFeedback]:
        """Judgements of an inference or a conversation, oldest first."""
        return await self._store.feedback(tenant, user, target)

    @query
    async def exists(
        self, tenant: str, user: str, target: str, kind: Literal["inference", "conversation"]
    ) -> bool:
        """Whether there is something of this id to judge."""
        if kind == "inference":
            return await self._store.inference(tenant, user, target) is not None
        return bool(await self._store.messages(tenant, user, target, limit=1))


def _title(messages: Sequence[ChatMessage]) -> str:
    """The first line of the first thing a person said."""
    said = next((message.content for message in messages if message.role == "user"), "")
    return next(iter(said.strip().splitlines()), "")[:80]


def _exported(summary: ConversationSummary, messages: Sequence[StoredMessage]) -> dict[str, Any]:
    return {
        "conversation": summary.id,
        "title": summary.title,
        "source": summary.source,
        "started_at": summary.started_at.isoformat(),
        "messages": [{"role": m.role, "content": m.content} for m in messages],
    }
