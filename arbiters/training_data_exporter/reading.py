"""What the log says that could be learnt from, put together by conversation and reply."""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime

from arbiters.envelope import Envelope, decode
from arbiters.events import (
    ChatMessage,
    ConversationDeleted,
    ConversationImported,
    FactForgotten,
    FactStated,
    FeedbackGiven,
    MessageReceived,
    ReplyGiven,
)
from arbiters.ports import EventLog
from policies.privacy import trust_of_source

CONTEXT_TURNS = 20
"""Turns before a target that are kept with it; training cuts to its own context after that."""

MATERIAL = frozenset(
    {"MessageReceived", "ReplyGiven", "ConversationImported", "FeedbackGiven", "FactStated"}
)
UNDOING = frozenset({"ConversationDeleted", "FactForgotten"})


@dataclass(frozen=True, slots=True)
class Asked:
    """A message with the turns before it; the last of `prompt` is the message."""

    conversation: str
    prompt: tuple[ChatMessage, ...]
    trust: str
    event: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What SOMA answered to a message."""

    asked: Asked
    content: str
    whole: bool
    """False when it was broken off or failed."""
    event: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Judgement:
    """A rating, a better answer, or the id of a reply that is preferred."""

    value: float | str
    source: str
    event: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Import:
    """A conversation from a file."""

    messages: tuple[ChatMessage, ...]
    held_out: bool
    event: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Fact:
    """What a person stated last about a subject; `asked` is the message, if it was in one."""

    stated: FactStated
    asked: Asked | None
    event: str
    at: datetime


@dataclass(slots=True)
class OfUser:
    """Everything of one user; `deleted` are conversations that must not be used."""

    turns: dict[str, list[ChatMessage]] = field(default_factory=dict[str, list[ChatMessage]])
    asked: dict[str, Asked] = field(default_factory=dict[str, Asked])
    replies: dict[str, Reply] = field(default_factory=dict[str, Reply])
    last_reply: dict[str, str] = field(default_factory=dict[str, str])
    imports: dict[str, Import] = field(default_factory=dict[str, Import])
    digests: set[str] = field(default_factory=set[str])
    judgements: defaultdict[tuple[str, str], list[Judgement]] = field(
        default_factory=lambda: defaultdict[tuple[str, str], list[Judgement]](list)
    )
    """(judgement's name, target) → oldest first."""
    facts: dict[str, Fact] = field(default_factory=dict[str, Fact])
    deleted: set[str] = field(default_factory=set[str])


class Reading:
    """The material of one tenant up to an offset. What was undone later is undone here, too."""

    def __init__(self, tenant: str, *, only: str | None = None) -> None:
        self.users: defaultdict[str, OfUser] = defaultdict(OfUser)
        self._tenant = tenant
        self._only = only

    async def read(self, log: EventLog, *, upto: int) -> None:
        """Read the log to its end; of material no more than up to `upto`."""
        cursor, end = 0, await log.end()
        while cursor < end:
            batch = await log.read(cursor, types=MATERIAL | UNDOING)
            for envelope in batch.envelopes:
                if envelope.offset <= upto or envelope.type in UNDOING:
                    self.hear(envelope)
            cursor = batch.end

    @property
    def is_settled(self) -> bool:
        """Whether everything that was deleted is gone from the log, too; erasing takes a moment."""
        return all(of.deleted.isdisjoint([*of.turns, *of.imports]) for of in self.users.values())

    def hear(self, envelope: Envelope) -> None:
        """Take in one event."""
        if envelope.tenant != self._tenant or self._only not in {None, envelope.user}:
            return
        of = self.users[envelope.user]
        match decode(envelope):
            case MessageReceived() as event:
                _hear_message(of, event, envelope)
            case ReplyGiven() as event:
                _hear_reply(of, event, envelope)
            case ConversationImported() as event:
                _hear_import(of, event, envelope)
            case FeedbackGiven() as event:
                judgement = Judgement(event.value, event.source, envelope.id, envelope.at)
                of.judgements[event.name, _target(of, event)].append(judgement)
            case FactStated() as event:
                asked = of.asked.get(event.message)
                of.facts[event.subject] = Fact(event, asked, envelope.id, envelope.at)
            case FactForgotten(subject=subject):
                of.facts.pop(subject, None)
            case ConversationDeleted(conversation=conversation):
                of.deleted.add(conversation)
            case _:
                pass


def _hear_message(of: OfUser, event: MessageReceived, envelope: Envelope) -> None:
    turns = of.turns.setdefault(event.conversation, [])
    # A stateless client sends everything along; else what was said before is in the log.
    before = list(event.context) or turns
    message = ChatMessage(role="user", content=event.content)
    of.asked[event.message] = Asked(
        conversation=event.conversation,
        prompt=(*shortened(before), message),
        trust=event.trust,
        event=envelope.id,
    )
    of.turns[event.conversation] = [*before, message]


def _hear_reply(of: OfUser, event: ReplyGiven, envelope: Envelope) -> None:
    asked = of.asked.get(event.message)
    if asked is None:
        return  # What it answers was erased meanwhile.
    of.turns[event.conversation].append(ChatMessage(role="assistant", content=event.content))
    of.last_reply[event.conversation] = event.inference
    of.replies[event.inference] = Reply(
        asked=asked,
        content=event.content,
        whole=event.finish in {"stop", "length"},
        event=envelope.id,
        at=envelope.at,
    )


def _hear_import(of: OfUser, event: ConversationImported, envelope: Envelope) -> None:
    if event.digest in of.digests:
        return
    of.digests.add(event.digest)
    of.imports[event.conversation] = Import(
        messages=event.messages,
        held_out=event.held_out,
        event=envelope.id,
        at=event.happened_at or envelope.at,
    )


def _target(of: OfUser, event: FeedbackGiven) -> str:
    """A better answer to a conversation is one to its last reply."""
    if event.target_kind == "conversation" and event.name == "demonstration":
        return of.last_reply.get(event.target, event.target)
    return event.target


def shortened(turns: list[ChatMessage] | tuple[ChatMessage, ...]) -> list[ChatMessage]:
    """The newest turns, and the system's instruction before them."""
    system = [turn for turn in turns[:-CONTEXT_TURNS] if turn.role == "system"][:1]
    return [*system, *turns[-CONTEXT_TURNS:]]


def is_trusted(judgement: Judgement) -> bool:
    """Whether a human made it."""
    return trust_of_source(judgement.source) == "owner"


def ratings(of: OfUser, inference: str) -> list[tuple[str, float]]:
    """(source, value) of the ratings of a reply, oldest first."""
    given = of.judgements.get(("rating", inference), list[Judgement]())
    return [(one.source, one.value) for one in given if not isinstance(one.value, str)]
