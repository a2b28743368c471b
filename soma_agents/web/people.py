"""`/api/personality` and `/api/profile`: who SOMA is to someone, and what it knows of them."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import ConfigDict, Field

from arbiters.errors import NotFoundError
from arbiters.events import FactForgotten, FactStated, PersonalityRestored
from soma_agents.web.dependencies import Chats, Forgets, Judges, Looks, Parts
from soma_agents.web.schemas import Body

router = APIRouter(prefix="/api", tags=["People"])


@router.get("/personality/current")
async def personality(services: Parts, asked: Looks) -> dict[str, Any]:
    """The personality towards the user; dimensions in [0, 1]."""
    revision = await services.directory.ask(
        "personality_forge",
        "current",
        at_least=services.gateway.people.changed_at(asked.caller.tenant, asked.caller.user),
        tenant=asked.caller.tenant,
        user=asked.caller.user,
    )
    return asdict(revision)


@router.get("/personality/history")
async def personality_history(
    services: Parts, asked: Looks, limit: Annotated[int, Query(ge=1, le=1000)] = 50
) -> dict[str, Any]:
    """How it came to be so, newest first."""
    revisions = await services.directory.ask(
        "personality_forge",
        "history",
        at_least=services.gateway.people.changed_at(asked.caller.tenant, asked.caller.user),
        tenant=asked.caller.tenant,
        user=asked.caller.user,
        limit=limit,
    )
    return {"data": [asdict(revision) for revision in revisions]}


class Restore(Body):
    """Which revision to return to."""

    model_config = ConfigDict(strict=True, extra="forbid")

    revision: Annotated[int, Field(ge=0)]


@router.post("/personality/restore")
async def restore(body: Restore, services: Parts, asked: Judges) -> dict[str, Any]:
    """Undo what came after a revision; the undone stays in the history."""
    caller = asked.caller
    revisions = await services.directory.ask(
        "personality_forge", "history", tenant=caller.tenant, user=caller.user, limit=1000
    )
    chosen = next((r for r in revisions if r.revision == body.revision), None)
    if chosen is None:
        raise NotFoundError(f"there is no personality revision {body.revision}")
    said = await services.publisher.publish(
        PersonalityRestored(revision=body.revision, dimensions=dict(chosen.dimensions)),
        tenant=caller.tenant,
        user=caller.user,
    )
    services.gateway.people.heard(said)
    return await personality(services, asked)


@router.get("/profile")
async def profile(services: Parts, asked: Looks) -> dict[str, Any]:
    """What is known of the user, and from which message."""
    facts = await services.directory.ask(
        "user_profile",
        "profile",
        at_least=services.gateway.people.changed_at(asked.caller.tenant, asked.caller.user),
        tenant=asked.caller.tenant,
        user=asked.caller.user,
    )
    return {"user": asked.caller.user, "facts": [asdict(fact) for fact in facts]}


Subject = Annotated[str, Path(min_length=1, max_length=100)]


class Fact(Body):
    """Something the user says about themselves."""

    model_config = ConfigDict(strict=True, extra="forbid")

    value: Annotated[str, Field(min_length=1, max_length=1000)]
    kind: Literal["fact", "preference"] = "fact"


@router.put("/profile/{subject}")
async def state(subject: Subject, body: Fact, services: Parts, asked: Chats) -> dict[str, Any]:
    """State or correct a fact, such as `name` or `pet.name`."""
    caller = asked.caller
    said = await services.publisher.publish(
        FactStated(
            fact=services.ids.new(),
            message="",
            subject=subject,
            value=body.value,
            kind=body.kind,
            quote=body.value,
        ),
        tenant=caller.tenant,
        user=caller.user,
    )
    services.gateway.people.heard(said)
    return await profile(services, asked)


@router.delete("/profile/{subject}")
async def forget(subject: Subject, services: Parts, asked: Forgets) -> dict[str, Any]:
    """Take a fact back, with its history."""
    caller = asked.caller
    known = (await profile(services, asked))["facts"]
    if subject not in {fact["subject"] for fact in known}:
        raise NotFoundError(f"nothing is known about {subject!r}; GET /api/profile lists the facts")
    said = await services.publisher.publish(
        FactForgotten(subject=subject), tenant=caller.tenant, user=caller.user
    )
    services.gateway.people.heard(said)
    return await profile(services, asked)
