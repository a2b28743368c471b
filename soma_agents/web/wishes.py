"""What a person asks the evaluation for: said on the bus, answered there, in effect here."""

import asyncio

from arbiters.envelope import Envelope
from arbiters.errors import ConflictError, UnavailableError
from arbiters.events import Event
from soma_agents.web.dependencies import Identity
from soma_agents.web.services import Services

WISH_SECONDS = 20.0
"""How long an answer to a wish is waited for."""
_ANSWERS = frozenset(
    {
        "ModelPromoted",
        "ModelRolledBack",
        "SpecialistRegistered",
        "SpecialistRetired",
        "RequestRefused",
    }
)


async def granted(services: Services, asked: Identity, event: Event) -> Envelope:
    """Say a wish, wait for what becomes of it and until it is in effect here.

    Raises:
        ConflictError: it was refused; the message says why.
        UnavailableError: nobody answered in time; the wish stands.
    """
    caller = asked.caller
    wish = await services.publisher.publish(event, tenant=caller.tenant, user=caller.user)
    answer = await _answer_to(services, wish)
    if answer.type == "RequestRefused":
        raise ConflictError(answer.payload["because"])
    await services.rollout.reached(answer.offset)
    return answer


async def _answer_to(services: Services, wish: Envelope) -> Envelope:
    cursor = wish.offset
    try:
        async with asyncio.timeout(WISH_SECONDS):
            while True:
                batch = await services.log.read(cursor, types=_ANSWERS, wait=WISH_SECONDS)
                cursor = batch.end
                for envelope in batch.envelopes:
                    if envelope.cause == wish.id:
                        return envelope
    except TimeoutError:
        raise UnavailableError(
            f"the evaluation has not answered {wish.type} {wish.id} yet; GET /api/models tells"
        ) from None
