"""Conversations, profiles and personalities in memory."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from arbiters.errors import ConflictError
from arbiters.records import (
    NOTES_KEPT,
    ConversationSummary,
    PersonalityRevision,
    StoredFact,
    StoredFeedback,
    StoredMessage,
)
from arbiters.testing.bus import Memory

_TITLE = 80


class MemoryConversationStore(Memory):
    """A `ConversationStore`."""

    def __init__(self) -> None:
        self._messages: dict[tuple[str, str, str], StoredMessage] = {}
        self._opened: dict[tuple[str, str, str], tuple[str, str, str, datetime]] = {}
        self._feedback: dict[tuple[str, str, str], StoredFeedback] = {}

    async def add_message(self, tenant: str, user: str, message: StoredMessage) -> bool:
        if (tenant, user, message.id) in self._messages:
            return False
        self._messages[tenant, user, message.id] = message
        title = message.content.strip()[:_TITLE] if message.role == "user" else ""
        self._opened.setdefault(
            (tenant, user, message.conversation), ("chat", title, "", message.at)
        )
        return True

    async def add_conversation(
        self,
        tenant: str,
        user: str,
        conversation: str,
        *,
        source: str,
        title: str,
        digest: str,
        at: datetime,
    ) -> bool:
        digests = {
            d for (t, u, _), (_, _, d, _) in self._opened.items() if (t, u) == (tenant, user)
        }
        if (tenant, user, conversation) in self._opened or (digest and digest in digests):
            return False
        self._opened[tenant, user, conversation] = (source, title, digest, at)
        return True

    async def add_feedback(self, tenant: str, user: str, feedback: StoredFeedback) -> bool:
        if (tenant, user, feedback.id) in self._feedback:
            return False
        self._feedback[tenant, user, feedback.id] = feedback
        return True

    async def delete(self, tenant: str, user: str, conversation: str) -> bool:
        if self._opened.pop((tenant, user, conversation), None) is None:
            return False
        gone = self._of(tenant, user, conversation)
        targets = {conversation, *(message.inference for message in gone if message.inference)}
        for message in gone:
            del self._messages[tenant, user, message.id]
        for key in [
            k for k, f in self._feedback.items() if k[:2] == (tenant, user) and f.target in targets
        ]:
            del self._feedback[key]
        return True

    def _of(self, tenant: str, user: str, conversation: str | None = None) -> list[StoredMessage]:
        return [
            message
            for (t, u, _), message in self._messages.items()
            if (t, u) == (tenant, user) and conversation in (None, message.conversation)
        ]

    async def messages(
        self,
        tenant: str,
        user: str,
        conversation: str,
        *,
        limit: int = 200,
        before: str | None = None,
    ) -> list[StoredMessage]:
        found = self._of(tenant, user, conversation)
        if before is not None:
            ids = [message.id for message in found]
            found = found[: ids.index(before)] if before in ids else []
        return found[max(0, len(found) - limit) :]

    async def conversations(
        self, tenant: str, user: str, *, limit: int = 50, offset: int = 0
    ) -> list[ConversationSummary]:
        summaries = [
            self._summary(tenant, user, conversation)
            for t, u, conversation in reversed(self._opened)
            if (t, u) == (tenant, user)
        ]
        summaries.sort(key=lambda summary: summary.last_at, reverse=True)
        return summaries[offset : offset + limit]

    def _summary(self, tenant: str, user: str, conversation: str) -> ConversationSummary:
        source, title, _, at = self._opened[tenant, user, conversation]
        times = [message.at for message in self._of(tenant, user, conversation)]
        return ConversationSummary(
            id=conversation,
            title=title,
            source=source,
            messages=len(times),
            started_at=at,
            last_at=max(times, default=at),
        )

    async def search(
        self, tenant: str, user: str, words: str, *, limit: int = 20
    ) -> list[StoredMessage]:
        wanted = set(_words(words))
        if not wanted:
            return []
        found = [m for m in self._of(tenant, user) if wanted <= set(_words(m.content))]
        return sorted(found, key=lambda message: len(_words(message.content)))[:limit]

    async def mentions(
        self, tenant: str, user: str, beginnings: Sequence[str], *, apart_from: str, limit: int = 20
    ) -> list[StoredMessage]:
        wanted = tuple(beginning.casefold() for beginning in beginnings)
        found = [
            (sum(word.startswith(wanted) for word in _words(message.content)), message)
            for message in self._of(tenant, user)
            if (message.role, message.trust) == ("user", "owner")
            and message.conversation != apart_from
        ]
        found = [pair for pair in found if pair[0]]
        return [message for _, message in sorted(found, key=lambda pair: -pair[0])][:limit]

    async def newest(self, tenant: str, user: str, *, limit: int) -> list[StoredMessage]:
        return self._of(tenant, user)[::-1][:limit]

    async def feedback(self, tenant: str, user: str, target: str) -> list[StoredFeedback]:
        return [
            given
            for (t, u, _), given in self._feedback.items()
            if (t, u, given.target) == (tenant, user, target)
        ]

    async def inference(self, tenant: str, user: str, inference: str) -> StoredMessage | None:
        found = (m for m in self._of(tenant, user) if inference and m.inference == inference)
        return next(found, None)

    async def statistics(self, tenant: str, user: str) -> dict[str, int]:
        messages = self._of(tenant, user)
        counts = dict.fromkeys(("system", "user", "assistant"), 0)
        for message in messages:
            counts[message.role] += 1
        mine = (tenant, user)
        return {
            "conversations": sum(key[:2] == mine for key in self._opened),
            "messages": len(messages),
            "words": sum(len(message.content.split()) for message in messages),
            "feedback": sum(key[:2] == mine for key in self._feedback),
            **counts,
        }


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.casefold()).split()


class MemoryProfileStore(Memory):
    """A `ProfileStore`."""

    def __init__(self) -> None:
        self._facts: dict[tuple[str, str, str], StoredFact] = {}

    async def put(self, tenant: str, user: str, fact: StoredFact) -> None:
        self._facts.setdefault((tenant, user, fact.id), fact)

    async def forget(self, tenant: str, user: str, subject: str) -> bool:
        gone = [
            key
            for key, fact in self._facts.items()
            if key[:2] == (tenant, user) and fact.subject == subject
        ]
        for key in gone:
            del self._facts[key]
        return bool(gone)

    async def facts(self, tenant: str, user: str) -> list[StoredFact]:
        newest = {f.subject: f for (t, u, _), f in self._facts.items() if (t, u) == (tenant, user)}
        return [newest[subject] for subject in sorted(newest)]

    async def history(self, tenant: str, user: str, subject: str) -> list[StoredFact]:
        return [
            fact
            for (t, u, _), fact in self._facts.items()
            if (t, u, fact.subject) == (tenant, user, subject)
        ]


class MemoryPersonalityStore(Memory):
    """A `PersonalityStore`."""

    def __init__(self) -> None:
        self._revisions: list[tuple[str, str, PersonalityRevision]] = []
        self._notes: dict[tuple[str, str, str], dict[str, float]] = {}

    async def current(self, tenant: str, user: str) -> PersonalityRevision | None:
        newest = await self.history(tenant, user, limit=1)
        return newest[0] if newest else None

    async def add(self, tenant: str, user: str, revision: PersonalityRevision) -> None:
        taken = {r.revision for t, u, r in self._revisions if (t, u) == (tenant, user)}
        if revision.revision in taken:
            raise ConflictError(
                f"personality of {user!r} has a revision {revision.revision} already; read it again"
            )
        self._revisions.append((tenant, user, revision))

    async def history(
        self, tenant: str, user: str, *, limit: int = 50
    ) -> list[PersonalityRevision]:
        found = [r for t, u, r in self._revisions if (t, u) == (tenant, user)]
        return sorted(found, key=lambda r: r.revision, reverse=True)[:limit]

    async def note(self, tenant: str, user: str, name: str, values: Mapping[str, float]) -> None:
        self._notes.pop((tenant, user, name), None)
        self._notes[tenant, user, name] = dict(values)
        names = [key for key in self._notes if key[:2] == (tenant, user)]
        for key in names[:-NOTES_KEPT]:
            del self._notes[key]

    async def noted(self, tenant: str, user: str, name: str) -> Mapping[str, float] | None:
        return self._notes.get((tenant, user, name))
