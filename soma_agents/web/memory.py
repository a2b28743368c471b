"""`/api/memory/search`: what was said before, by meaning. Nothing is kept for it."""

from dataclasses import asdict
from itertools import accumulate
from typing import Annotated, Any

from fastapi import APIRouter, Query

from soma_agents.web.dependencies import Looks, Parts

router = APIRouter(prefix="/api/memory", tags=["Conversations"])

MESSAGES = 5_000
"""The newest that are looked through."""
BEGINNING, CHARACTERS = 2_000, 1_000_000
"""Of one message, and of all together: some two seconds of work."""


@router.get("/search")
async def search(
    services: Parts,
    asked: Looks,
    q: Annotated[str, Query(min_length=1, max_length=1000)],
    limit: Annotated[int, Query(ge=1, le=1000)] = 10,
) -> dict[str, Any]:
    """Messages of any conversation that are most like a text, the nearest first."""
    messages = await services.directory.ask(
        "conversation_history",
        "newest",
        at_least=await services.log.end(),  # what was said a moment ago is found, too
        tenant=asked.caller.tenant,
        user=asked.caller.user,
        limit=MESSAGES,
    )
    texts = [message.content[:BEGINNING] for message in messages]
    read = sum(total <= CHARACTERS for total in accumulate(map(len, texts)))
    found = await services.embeddings.near(q, texts[:read], limit)
    return {"data": [asdict(messages[n]) | {"likeness": round(cos, 4)} for n, cos in found]}
