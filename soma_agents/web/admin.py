"""`/api/events`, `/api/dead-letters`, `/api/status`: what happened and how things stand."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from arbiters.envelope import EVENT_TYPES, Envelope
from arbiters.errors import InvalidError, NotFoundError
from arbiters.records import DeadLetter
from soma_agents.runtime.snapshots import SNAPSHOTS, take_snapshot
from soma_agents.web.dependencies import Inspects, Looks, Parts
from soma_agents.web.services import Services

router = APIRouter(prefix="/api", tags=["Administration"])

PAGE = 500
FOLLOW_SECONDS = 5.0
MOST_CAUSED = 500
"""Consequences told of one event at most."""


@router.get("/events")
async def events(
    *,
    services: Parts,
    _: Inspects,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int | None, Query(ge=1)] = None,
    types: str | None = None,
    follow: bool = False,
) -> Response:
    """The event log as JSON lines; `types` are names with commas, `follow` stays for more."""
    wanted = _types(types)
    lines = _lines(services, after, limit=limit, types=wanted, follow=follow)
    return StreamingResponse(lines, media_type="application/x-ndjson")


def _types(names: str | None) -> frozenset[str] | None:
    if names is None:
        return None
    wanted = frozenset(name.strip() for name in names.split(","))
    unknown = wanted - EVENT_TYPES.keys()
    if unknown:
        raise InvalidError(
            f"there is no event type {min(unknown)!r}; see arbiters/events.py, arbiters/model_events.py"
        )
    return wanted


async def _lines(
    services: Services,
    after: int,
    *,
    limit: int | None,
    types: frozenset[str] | None,
    follow: bool,
) -> AsyncIterator[str]:
    left = limit
    while left is None or left > 0:
        page = PAGE if left is None else min(PAGE, left)
        wait = FOLLOW_SECONDS if follow else 0
        batch = await services.log.read(after, limit=page, types=types, wait=wait)
        for envelope in batch.envelopes:
            yield envelope.dump() + "\n"
        if left is not None:
            left -= len(batch.envelopes)
        if not follow and not batch.envelopes:
            return
        after = batch.end


@router.get("/events/{event}/why")
async def why(event: str, services: Parts, _: Inspects) -> dict[str, Any]:
    """What led to an event, oldest first, and all that followed from it."""
    envelope = await services.log.find(event)
    if envelope is None:
        raise NotFoundError(f"there is no event {event!r}; GET /api/events lists them")
    because: list[Envelope] = []
    above = envelope
    while above.cause and (found := await services.log.find(above.cause)) is not None:
        because.insert(0, found)
        above = found
    caused = await _consequences(services, envelope)
    return {
        "because": [one.fields() for one in because],
        "event": envelope.fields(),
        "caused": [one.fields() for one in caused],
    }


async def _consequences(services: Services, envelope: Envelope) -> list[Envelope]:
    found: list[Envelope] = []
    waiting = [envelope.id]
    while waiting and len(found) < MOST_CAUSED:
        direct = await services.log.caused_by(waiting.pop(0))
        found += direct
        waiting += [one.id for one in direct]
    return sorted(found[:MOST_CAUSED], key=lambda one: one.offset)


@router.get("/dead-letters")
async def dead_letters(services: Parts, _: Inspects) -> dict[str, Any]:
    """Events that an arbiter could not handle."""
    found = [
        _letter(arbiter, letter)
        for arbiter in services.directory.names()
        for letter in await services.directory.dead_letters(arbiter)
    ]
    return {"data": found}


def _letter(arbiter: str, letter: DeadLetter) -> dict[str, Any]:
    return {
        "arbiter": arbiter,
        "event": letter.envelope.id,
        "type": letter.envelope.type,
        "attempts": letter.attempts,
        "error": letter.error,
        "at": letter.at,
    }


@router.post("/dead-letters/{arbiter}/{event}/replay")
async def replay(arbiter: str, event: str, services: Parts, _: Inspects) -> dict[str, Any]:
    """Let an arbiter try a dead letter again."""
    await services.directory.replay(arbiter, event)
    return {"arbiter": arbiter, "event": event, "handled": True}


@router.post("/snapshot")
async def snapshot(services: Parts, _: Inspects) -> dict[str, Any]:
    """Copy every database below the data directory, for `soma backup` and `soma verify`.

    No place is taken from the request: a key over HTTP must not choose where files appear.
    """
    directory = services.settings.home / SNAPSHOTS / services.ids.new()
    await take_snapshot(services.owners, services.settings, directory)
    return {"directory": str(directory), "events": await services.log.end()}


@router.get("/status")
async def status(services: Parts, _: Looks) -> dict[str, Any]:
    """Who is in service and which round is under way."""
    async with asyncio.TaskGroup() as group:
        state = group.create_task(services.directory.ask("auto_training_coordinator", "status"))
        end = group.create_task(services.log.end())
    lineup = services.rollout.lineup
    return {
        "ready": True,
        "url": services.settings.url,
        "champion": {"name": lineup.champion.name, "id": lineup.champion.id},
        "canary": lineup.candidate and {"name": lineup.candidate.name, "id": lineup.candidate.id},
        "round": state.result()["round"],
        "events": end.result(),
        "in_flight": services.gateway.in_flight,
    }
