"""PersonalityForge: how SOMA is towards each person, moved a little by every exchange."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import ClassVar

from arbiters.envelope import Envelope
from arbiters.events import (
    FeedbackGiven,
    MessageReceived,
    PersonalityRestored,
    PersonalityShifted,
    ReplyGiven,
)
from arbiters.kernel.arbiter import Arbiter, Said, on, query
from arbiters.ports import Measures
from arbiters.records import PersonalityRevision
from arbiters.stores import PersonalityStore
from policies.personality import DEFAULTS, PersonalityRules, describe_shift, distance, evolve

EVERY = 5
"""Messages between two revisions at least."""
NOTABLE = 0.002
"""Distance from the last revision below which there is none."""
_DRAFT = "draft"
_SINCE = "messages"
BEGINNING = PersonalityRevision(
    revision=0,
    dimensions=DEFAULTS,
    messages=0,
    because="the beginning",
    at=datetime(1970, 1, 1, tzinfo=UTC),
)


class PersonalityForge(Arbiter):
    """Measures what is written, moves a draft, and makes a revision of it now and then.

    The draft and the measures of the newest replies are notes in the store, so that a restart
    loses nothing and a judgement that comes later finds the reply it is about.
    """

    name: ClassVar[str] = "personality_forge"

    def __init__(
        self,
        *,
        store: PersonalityStore,
        measures: Measures,
        rules: PersonalityRules | None = None,
    ) -> None:
        self._store = store
        self._measures = measures
        self._rules = rules or PersonalityRules()

    # --- hearing ---------------------------------------------------------------------------

    @on(MessageReceived)
    async def follow(self, event: MessageReceived, envelope: Envelope) -> Said:
        """Move towards how the person writes."""
        if event.trust != "owner":
            return
        draft, since = await self._draft(envelope)
        shift = evolve(draft, measures_of_user=self._measures.of(event.content), rules=self._rules)
        async for said in self._move(shift.dimensions, since + 1, envelope):
            yield said

    @on(ReplyGiven)
    async def remember(self, event: ReplyGiven, envelope: Envelope) -> Said:
        """Keep the measures of a reply until it is judged."""
        measured = self._measures.of(event.content)
        await self._store.note(envelope.tenant, envelope.user, f"reply/{event.inference}", measured)
        return
        yield

    @on(FeedbackGiven)
    async def heed(self, event: FeedbackGiven, envelope: Envelope) -> Said:
        """Move towards a reply that was liked, away from one that was not."""
        if event.name != "rating" or event.source != "HUMAN" or isinstance(event.value, str):
            return
        name = f"reply/{event.target}"
        measured = await self._store.noted(envelope.tenant, envelope.user, name)
        if measured is None:
            return
        draft, since = await self._draft(envelope)
        shift = evolve(
            draft,
            measures_of_reply=measured,
            feedback=min(max(event.value, -1.0), 1.0),
            rules=self._rules,
        )
        async for said in self._move(shift.dimensions, since, envelope):
            yield said

    @on(PersonalityRestored)
    async def restore(self, event: PersonalityRestored, envelope: Envelope) -> Said:
        """Make a new revision that equals an old one."""
        last = await self._last(envelope)
        restored = PersonalityRevision(
            revision=last.revision + 1,
            dimensions=DEFAULTS | event.dimensions,
            messages=last.messages,
            because=f"restored revision {event.revision}",
            at=envelope.at,
        )
        await self._store.add(envelope.tenant, envelope.user, restored)
        await self._note_draft(envelope, restored.dimensions, 0)
        return
        yield

    # --- moving ----------------------------------------------------------------------------

    async def _move(self, draft: Mapping[str, float], since: int, envelope: Envelope) -> Said:
        """Note the draft; make a revision of it when enough was written and it has moved."""
        last = await self._last(envelope)
        if since < EVERY or distance(draft, last.dimensions) < NOTABLE:
            await self._note_draft(envelope, draft, since)
            return
        rounded = {name: round(value, 4) for name, value in draft.items()}
        revision = PersonalityRevision(
            revision=last.revision + 1,
            dimensions=rounded,
            messages=last.messages + since,
            because=describe_shift(last.dimensions, rounded, f"{since} messages"),
            at=envelope.at,
        )
        await self._store.add(envelope.tenant, envelope.user, revision)
        await self._note_draft(envelope, rounded, 0)
        yield PersonalityShifted(
            dimensions=rounded, messages=revision.messages, because=revision.because
        )

    async def _draft(self, envelope: Envelope) -> tuple[Mapping[str, float], int]:
        """The personality as it stands and the messages since the last revision."""
        noted = await self._store.noted(envelope.tenant, envelope.user, _DRAFT)
        if noted is None:
            return (await self._last(envelope)).dimensions, 0
        return {name: noted[name] for name in DEFAULTS}, int(noted[_SINCE])

    async def _note_draft(self, envelope: Envelope, draft: Mapping[str, float], since: int) -> None:
        noted = {**draft, _SINCE: float(since)}
        await self._store.note(envelope.tenant, envelope.user, _DRAFT, noted)

    async def _last(self, envelope: Envelope) -> PersonalityRevision:
        """The newest revision; the beginning is kept as the first, so that it can be restored."""
        last = await self._store.current(envelope.tenant, envelope.user)
        if last is None:
            last = BEGINNING
            await self._store.add(envelope.tenant, envelope.user, last)
        return last

    # --- answering -------------------------------------------------------------------------

    @query
    async def current(self, tenant: str, user: str) -> PersonalityRevision:
        """The newest revision; the beginning for somebody who never wrote."""
        return await self._store.current(tenant, user) or BEGINNING

    @query
    async def history(self, tenant: str, user: str, limit: int = 50) -> list[PersonalityRevision]:
        """Newest first, down to the beginning."""
        return await self._store.history(tenant, user, limit=limit) or [BEGINNING]
