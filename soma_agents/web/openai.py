"""`/v1`: what any OpenAI client speaks."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from arbiters.records import ModelVersion
from soma_agents.language.requests import Piece
from soma_agents.serving.embeddings import NAME as EMBEDDER
from soma_agents.serving.rollout import ModelNotFoundError
from soma_agents.serving.turns import Ended, Turn
from soma_agents.web.dependencies import Chats, Identity, Looks, Parts
from soma_agents.web.replies import chat_logprobs, completion_logprobs, headers, ids, usage
from soma_agents.web.schemas import ChatRequest, CompletionRequest, SamplingRequest
from soma_agents.web.services import Services
from soma_agents.web.streams import Begun, begin, collect, server_sent

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post("/chat/completions")
async def chat(body: ChatRequest, request: Request, services: Parts, asked: Chats) -> Response:
    """Answer a chat; `stream` sends it token by token as server-sent events."""
    own = services.gateway.card(body.model).parameters
    sampling = body.chat_sampling(own, services.settings.engine.max_tokens)
    turn = await services.gateway.chat(asked.caller, body.spoken(), sampling, model=body.model)
    if body.stream:
        begun = await begin(turn)
        return _stream(_chat_chunks(begun, body, services), turn)
    pieces, ended = await collect(request, turn)
    message = {"role": "assistant", "content": turn.text, "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": chat_logprobs(pieces, turn.tokenizer) if body.logprobs else None,
        "finish_reason": ended.finish,
    }
    head = _head("chatcmpl", "chat.completion", turn, services.now())
    return _whole(head, turn, choice, ended)


@router.post("/completions")
async def complete(
    body: CompletionRequest, request: Request, services: Parts, asked: Chats
) -> Response:
    """Go on with a text, without template, persona or memory."""
    own = services.gateway.card(body.model).parameters
    sampling = body.completion_sampling(own, services.settings.engine.max_tokens)
    turn = await services.gateway.complete(asked.caller, body.text(), sampling, model=body.model)
    if body.stream:
        begun = await begin(turn)
        return _stream(_text_chunks(begun, body, services), turn)
    pieces, ended = await collect(request, turn)
    choice = {
        "index": 0,
        "text": turn.text,
        "logprobs": completion_logprobs(pieces, turn.tokenizer)
        if body.logprobs is not None
        else None,
        "finish_reason": ended.finish,
    }
    head = _head("cmpl", "text_completion", turn, services.now())
    return _whole(head, turn, choice, ended)


@router.get("/models")
async def models(services: Parts, asked: Looks) -> dict[str, Any]:
    """`soma`, the champion whoever it is, every version, what the caller may ask, the embedder."""
    created = services.now()
    champion = services.rollout.lineup.champion
    listed = [
        {"id": "soma", "object": "model", "created": created, "owned_by": "soma"}
        | {"soma_model": champion.name}
    ]
    versions = [*await services.rollout.versions(), *_specialists(services, asked)]
    listed += [_model(v.name, int(v.registered_at.timestamp())) for v in versions]
    listed.append(_model(EMBEDDER, created))
    return {"object": "list", "data": listed}


@router.get("/models/{name}")
async def model(name: str, services: Parts, asked: Looks) -> dict[str, Any]:
    """One model version, a specialist, or the embedder."""
    if name in {"soma", EMBEDDER}:
        return _model(name, services.now())
    for version in [*await services.rollout.versions(), *_specialists(services, asked)]:
        if name in {version.name, version.id}:
            return _model(version.name, int(version.registered_at.timestamp()))
    raise ModelNotFoundError(f"there is no model {name!r}; GET /v1/models lists them")


def _specialists(services: Services, asked: Identity) -> list[ModelVersion]:
    card, name = services.gateway.card, asked.caller.name
    return [v for v in services.specialists.versions if card(v.name).allows(name)]


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "soma"}


def _whole(head: dict[str, Any], turn: Turn, choice: dict[str, Any], ended: Ended) -> Response:
    body = head | {"choices": [choice], "usage": usage(ended)}
    return JSONResponse(body, headers=headers(turn))


def _stream(chunks: AsyncGenerator[dict[str, Any]], turn: Turn) -> Response:
    return StreamingResponse(
        server_sent(chunks), media_type="text/event-stream", headers=headers(turn)
    )


async def _chat_chunks(
    begun: Begun, body: ChatRequest, services: Services
) -> AsyncGenerator[dict[str, Any]]:
    head = _head("chatcmpl", "chat.completion.chunk", begun.turn, services.now())
    tokenizer = begun.turn.tokenizer
    first: dict[str, Any] = {"role": "assistant"}
    async for item in begun.items():
        if isinstance(item, Piece):
            choice: dict[str, Any] = {"index": 0, "delta": first | {"content": item.text}}
            choice |= {"finish_reason": None}
            choice |= {"logprobs": chat_logprobs([item], tokenizer) if body.logprobs else None}
            yield head | {"choices": [choice]}
            first = {}
            continue
        choice = {"index": 0, "delta": first, "finish_reason": item.finish, "logprobs": None}
        yield head | {"choices": [choice]}
        if _wants_usage(body):
            yield head | {"choices": [], "usage": usage(item)}


async def _text_chunks(
    begun: Begun, body: CompletionRequest, services: Services
) -> AsyncGenerator[dict[str, Any]]:
    head = _head("cmpl", "text_completion", begun.turn, services.now())
    tokenizer = begun.turn.tokenizer
    async for item in begun.items():
        if isinstance(item, Piece):
            wanted = body.logprobs is not None
            choice: dict[str, Any] = {"index": 0, "text": item.text, "finish_reason": None}
            choice |= {"logprobs": completion_logprobs([item], tokenizer) if wanted else None}
            yield head | {"choices": [choice]}
            continue
        choice = {"index": 0, "text": "", "finish_reason": item.finish, "logprobs": None}
        yield head | {"choices": [choice]}
        if _wants_usage(body):
            yield head | {"choices": [], "usage": usage(item)}


def _head(prefix: str, kind: str, turn: Turn, created: int) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{turn.placed.inference}",
        "object": kind,
        "created": created,
        "model": turn.placed.version.name,
    } | ids(turn)


def _wants_usage(body: SamplingRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage
