"""`/api/reason` and `/api/conversation`: conversations that SOMA keeps."""

from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from arbiters.errors import NotFoundError
from soma_agents.language.requests import Piece
from soma_agents.web.dependencies import Chats, Exports, Forgets, Looks, Parts
from soma_agents.web.erasure import erase_conversation
from soma_agents.web.replies import headers, ids, usage
from soma_agents.web.schemas import ReasonRequest
from soma_agents.web.streams import Begun, begin, collect, server_sent

router = APIRouter(prefix="/api", tags=["Conversations"])

Limit = Annotated[int, Query(ge=1, le=1000)]
ConversationId = Annotated[str, Query(min_length=1, max_length=128)]


@router.post("/reason")
async def reason(body: ReasonRequest, request: Request, services: Parts, asked: Chats) -> Response:
    """Say something; SOMA keeps the conversation and answers in it."""
    own = services.gateway.card(body.model).parameters
    turn = await services.gateway.reason(
        asked.caller,
        body.message,
        body.sampling(own, max_tokens=services.settings.engine.max_tokens),
        conversation=body.conversation,
        model=body.model,
    )
    if body.stream:
        begun = await begin(turn)
        return StreamingResponse(
            server_sent(_chunks(begun)), media_type="text/event-stream", headers=headers(turn)
        )
    _, ended = await collect(request, turn)
    answer = {
        "reply": turn.text,
        "conversation": turn.placed.conversation,
        "inference": turn.placed.inference,
        "message": turn.placed.message,
        "model": turn.placed.version.name,
        "finish_reason": ended.finish,
        "usage": usage(ended),
        "left_out": turn.left_out,
    }
    return JSONResponse(answer | ids(turn), headers=headers(turn))


async def _chunks(begun: Begun) -> AsyncGenerator[dict[str, Any]]:
    head = ids(begun.turn) | {"model": begun.turn.placed.version.name}
    async for item in begun.items():
        if isinstance(item, Piece):
            yield head | {"delta": item.text}
        else:
            yield head | {"delta": "", "finish_reason": item.finish, "usage": usage(item)}


@router.get("/conversation/history")
async def history(
    services: Parts,
    asked: Looks,
    conversation: ConversationId,
    limit: Limit = 200,
    before: str | None = None,
) -> dict[str, Any]:
    """The newest messages of a conversation, oldest first; `before` pages back."""
    found = await services.directory.ask(
        "conversation_history",
        "history",
        at_least=services.gateway.seen(conversation),
        tenant=asked.caller.tenant,
        user=asked.caller.user,
        conversation=conversation,
        limit=limit,
        before=before,
    )
    if not found and before is None:
        raise NotFoundError(f"there is no conversation {conversation!r}")
    return {"conversation": conversation, "data": [asdict(message) for message in found]}


@router.get("/conversation/list")
async def conversations(
    services: Parts, asked: Looks, limit: Limit = 50, offset: Annotated[int, Query(ge=0)] = 0
) -> dict[str, Any]:
    """The conversations, newest first."""
    found = await services.directory.ask(
        "conversation_history",
        "conversations",
        tenant=asked.caller.tenant,
        user=asked.caller.user,
        limit=limit,
        offset=offset,
    )
    return {"data": [asdict(summary) for summary in found]}


@router.get("/conversation/search")
async def search(
    services: Parts,
    asked: Looks,
    words: Annotated[str, Query(min_length=1, max_length=1000)],
    limit: Limit = 20,
) -> dict[str, Any]:
    """Messages that contain every one of the words, best match first."""
    found = await services.directory.ask(
        "conversation_history",
        "search",
        tenant=asked.caller.tenant,
        user=asked.caller.user,
        words=words,
        limit=limit,
    )
    return {"data": [asdict(message) for message in found]}


@router.get("/conversation/statistics")
async def statistics(services: Parts, asked: Looks) -> dict[str, int]:
    """How much has been said."""
    return await services.directory.ask(
        "conversation_history",
        "statistics",
        tenant=asked.caller.tenant,
        user=asked.caller.user,
    )


@router.get("/conversation/export")
async def export(services: Parts, asked: Exports, conversation: ConversationId) -> dict[str, Any]:
    """One conversation as OpenAI chat messages, ready for another program."""
    return await services.directory.ask(
        "conversation_history",
        "export",
        at_least=services.gateway.seen(conversation),
        tenant=asked.caller.tenant,
        user=asked.caller.user,
        conversation=conversation,
    )


@router.delete("/conversation/{conversation}")
async def delete(conversation: str, services: Parts, asked: Forgets) -> dict[str, Any]:
    """Delete a conversation for good: its content is erased from the event log as well."""
    erased = await erase_conversation(services, asked.caller, conversation)
    return {"conversation": conversation, "deleted": True, "erased_events": erased}
