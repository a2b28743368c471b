"""Deleting a conversation everywhere: first from what was made of it, then from the log."""

import asyncio

from arbiters.envelope import Envelope
from arbiters.errors import NotFoundError
from arbiters.events import ConversationDeleted, FactForgotten
from soma_agents.serving.gateway import Caller
from soma_agents.web.services import Services

_OF_CONVERSATION = frozenset({"MessageReceived", "ReplyGiven", "ConversationImported"})
_TYPES = _OF_CONVERSATION | {"FeedbackGiven", "FactStated"}
# Arbiters that read messages, each with a question that costs nothing.
_READERS = (
    ("conversation_history", "statistics"),
    ("user_profile", "profile"),
    ("personality_forge", "current"),
)


async def erase_conversation(services: Services, caller: Caller, conversation: str) -> int:
    """Say that it is deleted, wait until the arbiters have done so, erase its payloads.

    Facts that the person stated in it are forgotten with it.

    Returns how many events were erased. Doing it again finishes what a crash interrupted.

    Raises:
        NotFoundError: the log has nothing of this conversation.
        UnavailableError: an arbiter is away; nothing is erased from the log yet.
    """
    events = await _events_of(services, caller, conversation)
    if not events:
        raise NotFoundError(f"there is no conversation {conversation!r}")
    await _forget_facts(services, caller, events)
    said = await services.publisher.publish(
        ConversationDeleted(conversation=conversation), tenant=caller.tenant, user=caller.user
    )
    services.gateway.threads.forget(conversation)
    services.gateway.people.heard(said)
    async with asyncio.TaskGroup() as group:
        for arbiter, question in _READERS:
            asked = services.directory.ask(
                arbiter, question, at_least=said.offset, tenant=caller.tenant, user=caller.user
            )
            group.create_task(asked)
    return await services.log.erase([envelope.id for envelope in events])


async def _forget_facts(services: Services, caller: Caller, events: list[Envelope]) -> None:
    """Take back what is known from these messages alone; a fact stated elsewhere since stays."""
    messages = {e.payload["message"] for e in events if e.type == "MessageReceived"}
    known = await services.directory.ask(
        "user_profile",
        "profile",
        at_least=events[-1].offset,
        tenant=caller.tenant,
        user=caller.user,
    )
    for fact in known:
        if fact.message in messages:
            await services.publisher.publish(
                FactForgotten(subject=fact.subject), tenant=caller.tenant, user=caller.user
            )


async def _events_of(services: Services, caller: Caller, conversation: str) -> list[Envelope]:
    """What was said in a conversation, what was said about it and what was understood from it."""
    found: list[Envelope] = []
    causes: set[str] = set()
    targets = {conversation}
    cursor, end = 0, await services.log.end()
    while cursor < end:
        batch = await services.log.read(cursor, types=_TYPES)
        cursor = batch.end
        for envelope in batch.envelopes:
            if (envelope.tenant, envelope.user) != (caller.tenant, caller.user):
                continue
            about = envelope.payload.get("target") in targets or envelope.cause in causes
            if envelope.type in _OF_CONVERSATION and envelope.key == conversation:
                found.append(envelope)
                causes.add(envelope.id)
                targets.add(envelope.payload.get("inference", conversation))
            elif envelope.type not in _OF_CONVERSATION and about:
                found.append(envelope)
    return found
