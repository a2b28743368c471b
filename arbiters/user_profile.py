"""UserProfile: what each person said about themselves; visible, editable, forgettable."""

from typing import ClassVar

from arbiters.envelope import Envelope
from arbiters.events import FactForgotten, FactStated, MessageReceived
from arbiters.kernel.arbiter import Arbiter, Said, on, query
from arbiters.records import StoredFact
from arbiters.stores import ProfileStore
from policies.memory.statements import facts_stated


class UserProfile(Arbiter):
    """Hears facts in a person's own words and keeps the newest of each."""

    name: ClassVar[str] = "user_profile"

    def __init__(self, *, store: ProfileStore) -> None:
        self._store = store

    @on(MessageReceived)
    async def listen(self, event: MessageReceived, envelope: Envelope) -> Said:
        """Say the facts that a message states, unless they are known."""
        stated = facts_stated(event.content, trust=event.trust)
        if not stated:
            return
        known = await self._store.facts(envelope.tenant, envelope.user)
        values = {fact.subject: fact.value for fact in known}
        for one in stated:
            if values.get(one.subject) != one.value:
                yield FactStated(
                    fact=f"{event.message}/{one.subject}",
                    message=event.message,
                    subject=one.subject,
                    value=one.value,
                    kind=one.kind,
                    quote=one.quote,
                )

    @on(FactStated)
    async def keep(self, event: FactStated, envelope: Envelope) -> Said:
        """Keep a fact, whoever heard it."""
        fact = StoredFact(
            id=event.fact,
            subject=event.subject,
            value=event.value,
            kind=event.kind,
            quote=event.quote,
            message=event.message,
            at=envelope.at,
        )
        await self._store.put(envelope.tenant, envelope.user, fact)
        return
        yield

    @on(FactForgotten)
    async def forget(self, event: FactForgotten, envelope: Envelope) -> Said:
        """Remove a subject with its history."""
        await self._store.forget(envelope.tenant, envelope.user, event.subject)
        return
        yield

    @query
    async def profile(self, tenant: str, user: str) -> list[StoredFact]:
        """What is known now, by subject."""
        return await self._store.facts(tenant, user)

    @query
    async def history(self, tenant: str, user: str, subject: str) -> list[StoredFact]:
        """Every value a subject had, oldest first."""
        return await self._store.history(tenant, user, subject)
