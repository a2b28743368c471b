"""`/api/training`, `/api/receipts`, `/api/models`, `/api/import`: what SOMA learns and from what."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from arbiters.envelope import Envelope
from arbiters.errors import ConflictError, NotFoundError
from arbiters.events import ChatMessage, ConversationImported, Event
from arbiters.model_events import PromotionRequested, RollbackRequested, RoundRequested
from soma_agents.web.dependencies import Exports, Identity, Imports, Looks, Parts, Promotes, Trains
from soma_agents.web.schemas import Body
from soma_agents.web.services import Services
from soma_agents.web.wishes import granted

router = APIRouter(prefix="/api", tags=["Learning"])

IMPORT_GROUP = 500
"""Conversations appended to the log together."""
Limit = Annotated[int, Query(ge=1, le=1000)]


# --- rounds --------------------------------------------------------------------------------


@router.post("/training/export")
@router.get("/training/export")
async def export(services: Parts, asked: Exports) -> dict[str, Any]:
    """Write what may be learnt from as a dataset: an admin everyone's, others their own."""
    mine = None if asked.role == "admin" else asked.caller.user
    return await services.directory.ask(
        "training_data_exporter", "export", tenant=asked.caller.tenant, user=mine
    )


@router.get("/training/stats")
async def stats(services: Parts, _: Looks) -> dict[str, Any]:
    """How much is new, when the next round is due, and what the data is made of."""
    async with asyncio.TaskGroup() as group:
        coordinator = group.create_task(
            services.directory.ask("auto_training_coordinator", "statistics")
        )
        exporter = group.create_task(services.directory.ask("training_data_exporter", "statistics"))
    return coordinator.result() | {"data": exporter.result()}


@router.post("/training/rounds", status_code=202)
async def begin_round(services: Parts, asked: Trains) -> dict[str, str]:
    """Ask for a round now; follow it at `/api/training/rounds/{request}`."""
    caller = asked.caller
    said = await services.publisher.publish(
        RoundRequested(by="user"), tenant=caller.tenant, user=caller.user
    )
    return {"request": said.id, "follow": f"/api/training/rounds/{said.id}"}


@router.get("/training/rounds")
async def rounds(services: Parts, _: Looks, limit: Limit = 50) -> dict[str, Any]:
    """The rounds, newest first."""
    found = await services.directory.ask("auto_training_coordinator", "rounds", limit=limit)
    return {"data": [_round(state) for state in found]}


@router.get("/training/rounds/{identity}")
async def one_round(identity: str, services: Parts, asked: Looks) -> dict[str, Any]:
    """A round, by its own id or by that of the request that asked for it."""
    for state in await services.directory.ask("auto_training_coordinator", "rounds", limit=1000):
        if state.id == identity:
            return _round(state)
    request = await services.log.find(identity)
    if request is None or request.type != "RoundRequested":
        raise NotFoundError(f"there is no round and no request for one with id {identity!r}")
    for envelope in await services.log.caused_by(identity):
        if envelope.type == "RoundStarted":
            return await one_round(envelope.payload["round"], services, asked)
        if envelope.type == "RequestRefused":
            return _refused(envelope.payload["because"])
    return {"id": None, "step": "requested", "progress": 0.0, "verdict": None, "because": ""} | {
        "seconds": None
    }


def _round(state: Any) -> dict[str, Any]:
    seconds = (state.finished_at - state.started_at).total_seconds() if state.finished_at else None
    return asdict(state) | {"seconds": seconds}


def _refused(because: str) -> dict[str, Any]:
    return {"id": None, "step": "finished", "progress": 1.0, "verdict": "failed"} | {
        "because": because,
        "seconds": 0.0,
    }


@router.get("/receipts")
async def receipts(services: Parts, _: Looks, limit: Limit = 50) -> dict[str, Any]:
    """What was learnt, what it did and what it cost; newest first."""
    return {"data": await services.directory.ask("evaluation", "receipts", limit=limit)}


# --- models --------------------------------------------------------------------------------


@router.get("/models")
async def models(services: Parts, _: Looks) -> dict[str, Any]:
    """Every model version with its stage and lineage, newest first; then the specialists."""
    found = await services.directory.ask("evaluation", "models")
    found += await services.directory.ask("evaluation", "specialists")
    return {"data": [asdict(version) for version in found]}


@router.post("/models/rollback")
async def rollback(services: Parts, asked: Promotes) -> dict[str, Any]:
    """Undo the last promotion."""
    return await _wish(services, asked, RollbackRequested())


@router.post("/models/{model}/promote")
async def promote(model: str, services: Parts, asked: Promotes) -> dict[str, Any]:
    """Make a version that has passed the gate the champion; by name or id."""
    found = await services.directory.ask("evaluation", "models")
    version = next((v for v in found if model in {v.id, v.name}), None)
    if version is None:
        raise NotFoundError(f"there is no model {model!r}; GET /api/models lists them")
    return await _wish(services, asked, PromotionRequested(model=version.id))


async def _wish(services: Services, asked: Identity, event: Event) -> dict[str, Any]:
    """Have the champion changed; see `granted`.

    Raises:
        ConflictError: the new champion cannot speak here.
    """
    answer = await granted(services, asked, event)
    champion = services.rollout.lineup.champion
    if answer.type == "ModelPromoted" and champion.id != answer.payload["model"]:
        raise ConflictError(services.rollout.why_not(answer.payload["model"]))
    return {
        "champion": {"name": champion.name, "id": champion.id},
        "because": answer.payload["because"],
        "event": answer.id,
    }


# --- import --------------------------------------------------------------------------------


class Conversation(BaseModel):
    """A conversation from elsewhere. `digest` is of its content: the same is imported once."""

    model_config = ConfigDict(extra="forbid")

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    title: Annotated[str, Field(max_length=1000)] = ""
    source: Annotated[str, Field(min_length=1, max_length=200)]
    digest: Annotated[str, Field(min_length=8, max_length=128)]
    happened_at: datetime | None = None
    held_out: bool = False


class Import(Body):
    """Conversations to take in."""

    # Not strict: the time comes as text.
    model_config = ConfigDict(extra="forbid", strict=False)

    conversations: Annotated[list[Conversation], Field(max_length=10_000)]


@router.post("/import")
async def take_in(body: Import, services: Parts, asked: Imports) -> dict[str, int]:
    """Import conversations; what was imported before, and not deleted since, is not taken twice."""
    caller = asked.caller
    total = {"conversations": 0, "messages": 0, "duplicates": 0}
    for start in range(0, len(body.conversations), IMPORT_GROUP):
        group = body.conversations[start : start + IMPORT_GROUP]
        before = await services.log.end()
        offsets = await _publish(services, asked, group, before)
        seen = set[int]()
        for conversation, offset in zip(group, offsets, strict=True):
            if offset <= before or offset in seen:
                total["duplicates"] += 1
                continue
            seen.add(offset)
            total["conversations"] += 1
            total["messages"] += len(conversation.messages)
        services.gateway.note(f"import/{caller.user}", max(offsets, default=0))
    return total


async def _publish(
    services: Services, asked: Identity, group: Sequence[Conversation], before: int
) -> list[int]:
    """Append imports; the offsets of new ones and of those that were there at `before`.

    One that was deleted since and is imported again gets a key of its own, made from the place of
    the deleted one, so that this happens once, too.
    """
    envelopes = [_imported(services, asked, conversation) for conversation in group]
    offsets = await services.publisher.publish_all(envelopes)
    while erased := await _erased(services, {offset for offset in offsets if offset <= before}):
        again = [number for number, offset in enumerate(offsets) if offset in erased]
        for number in again:
            key = f"{envelopes[number].idempotency}/{offsets[number]}"
            envelopes[number] = envelopes[number]._replace(idempotency=key)
        found = await services.publisher.publish_all([envelopes[number] for number in again])
        for number, offset in zip(again, found, strict=True):
            offsets[number] = offset
    return offsets


async def _erased(services: Services, offsets: set[int]) -> set[int]:
    """Which of these imports have no content any more."""
    gone, cursor = set(offsets), min(offsets, default=1) - 1
    while offsets and cursor < max(offsets):
        batch = await services.log.read(cursor, types=frozenset({"ConversationImported"}))
        gone -= {envelope.offset for envelope in batch.envelopes}
        cursor = batch.end
    return gone


def _imported(services: Services, asked: Identity, conversation: Conversation) -> Envelope:
    event = ConversationImported(
        conversation=services.ids.new(),
        digest=conversation.digest,
        source=conversation.source,
        title=conversation.title,
        messages=tuple(conversation.messages),
        happened_at=conversation.happened_at,
        held_out=conversation.held_out,
    )
    caller = asked.caller
    return services.publisher.wrap(
        event,
        tenant=caller.tenant,
        user=caller.user,
        idempotency=f"import/{caller.tenant}/{caller.user}/{conversation.digest}",
    )
