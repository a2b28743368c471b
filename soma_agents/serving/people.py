"""What is known of the person who asks: asked for once, then kept until something changes it."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from arbiters.envelope import Envelope
from arbiters.errors import SomaError
from arbiters.kernel.directory import Directory
from arbiters.ports import EventLog
from soma_agents.serving.follower import Follower
from soma_agents.serving.specialist import Known

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 0.5
"""A chat goes on without the newest facts rather than wait longer for an arbiter."""
KEPT = 1_000
CHANGES = frozenset(
    {
        "FactStated",
        "FactForgotten",
        "ConversationDeleted",
        "PersonalityShifted",
        "PersonalityRestored",
    }
)
T = TypeVar("T")


@dataclass(slots=True)
class _Person:
    known: Known = field(default_factory=Known)
    changed: int = 0
    """Offset of the newest event that may have changed it."""
    asked: int = -1
    """What `changed` was when it was asked for; the same: it is fresh."""


class People:
    """Asks profile and personality; falls back on the last answer when an arbiter is not there."""

    def __init__(self, directory: Directory, events: EventLog) -> None:
        self._directory = directory
        self._people: OrderedDict[tuple[str, str], _Person] = OrderedDict()
        self._newest = 0
        self._follower = Follower(events, CHANGES, self._hear)

    async def start(self) -> None:
        """Follow what changes anybody from now on."""
        await self._follower.skip()
        self._newest = self._follower.cursor
        self._follower.start()

    async def close(self) -> None:
        """Stop following."""
        await self._follower.close()

    async def known(self, tenant: str, user: str) -> Known:
        """What shapes the system message for this user."""
        person = self._person(tenant, user)
        changed = person.changed
        if person.asked == changed:
            return person.known
        last, traits = person.known, self._personality(tenant, user, changed)
        async with asyncio.TaskGroup() as group:
            facts_task = group.create_task(_or(last.facts, self._facts(tenant, user, changed)))
            traits_task = group.create_task(_or(last.personality, traits))
        (facts, sure), (personality, sure_too) = facts_task.result(), traits_task.result()
        person.known = Known(facts=facts, personality=personality)
        if sure and sure_too:
            person.asked = changed
        return person.known

    def _person(self, tenant: str, user: str) -> _Person:
        person = self._people.setdefault((tenant, user), _Person(changed=self._newest))
        self._people.move_to_end((tenant, user))
        while len(self._people) > KEPT:
            self._people.popitem(last=False)
        return person

    def heard(self, change: Envelope) -> None:
        """Something changed what is known of somebody; known from the log, or sooner."""
        self._newest = max(self._newest, change.offset)
        person = self._person(change.tenant, change.user)
        person.changed = max(person.changed, change.offset)

    def changed_at(self, tenant: str, user: str) -> int:
        """Offset up to which an arbiter must be to know the newest of this user."""
        return self._person(tenant, user).changed

    async def _hear(self, envelope: Envelope) -> None:
        self.heard(envelope)

    async def _facts(self, tenant: str, user: str, at_least: int) -> tuple[str, ...]:
        facts = await self._directory.ask(
            "user_profile", "profile", at_least=at_least, tenant=tenant, user=user
        )
        return tuple(f"{fact.subject.replace('.', ' ')}: {fact.value}." for fact in facts)

    async def _personality(
        self, tenant: str, user: str, at_least: int
    ) -> Mapping[str, float] | None:
        revision = await self._directory.ask(
            "personality_forge", "current", at_least=at_least, tenant=tenant, user=user
        )
        return revision.dimensions


async def _or(last: T, answer: Awaitable[T]) -> tuple[T, bool]:
    """The answer, or the last one; whether it is the answer."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await answer, True
    except (SomaError, TimeoutError) as error:
        log.warning("answering without the newest knowledge of the user", error=repr(error))
        return last, False
