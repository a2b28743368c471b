"""Which conversation a stateless client is in: the one whose transcript it sends along.

A client of `/v1` sends everything said so far. If that is exactly where a conversation stands,
the new message continues it; if a client went back and changed something, it is a new one.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from arbiters.envelope import Envelope, decode
from arbiters.events import ChatMessage, MessageReceived, ReplyGiven
from arbiters.ports import EventLog

KEPT = 10_000
"""Conversations remembered, the least recently used dropped first."""
READ_BACK = 20_000
"""Log entries looked through at start to find where conversations stand."""


class Threads:
    """Transcript so far → conversation. Kept in memory; rebuilt from the log."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._at: OrderedDict[str, str] = OrderedDict()
        """Digest of a transcript → the conversation that stands there."""
        self._stands: dict[str, str] = {}
        """Conversation → digest of its transcript."""

    async def rebuild(self, log: EventLog) -> None:
        """Learn from the newest part of the log where conversations stand."""
        cursor, end = max(0, await log.end() - READ_BACK), await log.end()
        types = frozenset({"MessageReceived", "ReplyGiven"})
        while cursor < end:
            batch = await log.read(cursor, types=types)
            for envelope in batch.envelopes:
                self._replay(envelope)
            cursor = batch.end

    def find(self, tenant: str, user: str, transcript: Sequence[ChatMessage]) -> str | None:
        """The conversation that stands at this transcript."""
        return self._at.get(digest(tenant, user, transcript))

    def put(
        self, tenant: str, user: str, conversation: str, transcript: Iterable[ChatMessage]
    ) -> None:
        """Note that a conversation stands at this transcript now."""
        self._set(conversation, digest(tenant, user, transcript))

    def forget(self, conversation: str) -> None:
        """A conversation moves on or was deleted: it stands nowhere for now."""
        place = self._stands.pop(conversation, None)
        if place is not None:
            self._at.pop(place, None)

    def _set(self, conversation: str, place: str) -> None:
        self.forget(conversation)
        self._at[place] = conversation
        self._stands[conversation] = place
        while len(self._at) > self._kept:
            _, oldest = self._at.popitem(last=False)
            self._stands.pop(oldest, None)

    def _replay(self, envelope: Envelope) -> None:
        if not envelope.payload:
            return  # erased
        match decode(envelope):
            case MessageReceived(conversation=conversation) as event:
                place = self._stands.get(conversation)
                if event.context or place is None:
                    place = digest(envelope.tenant, envelope.user, event.context)
                said = ChatMessage(role="user", content=event.content)
                self._set(conversation, _step(place, said))
            case ReplyGiven(conversation=conversation) as event:
                if place := self._stands.get(conversation):
                    reply = ChatMessage(role="assistant", content=event.content)
                    self._set(conversation, _step(place, reply))
            case _:
                pass


def digest(tenant: str, user: str, transcript: Iterable[ChatMessage]) -> str:
    """A chained hash of a transcript: each step covers all before it."""
    place = hashlib.sha256(f"{tenant}\0{user}".encode()).hexdigest()
    for message in transcript:
        place = _step(place, message)
    return place


def _step(place: str, message: ChatMessage) -> str:
    text = f"{place}\0{message.role}\0{message.content.strip()}"
    return hashlib.sha256(text.encode()).hexdigest()
