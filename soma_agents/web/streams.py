"""Turns over HTTP: all at once, or as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from arbiters.errors import SomaError
from soma_agents.language.requests import Piece
from soma_agents.serving.turns import Ended, Turn
from soma_agents.web.errors import describe


@dataclass(frozen=True, slots=True)
class Begun:
    """A turn whose first item is there, so that refusals still can be HTTP errors."""

    turn: Turn
    first: Piece | Ended
    rest: AsyncGenerator[Piece | Ended]

    async def items(self) -> AsyncGenerator[Piece | Ended]:
        """The first item and all others; leaving early ends the generation."""
        try:
            yield self.first
            async for item in self.rest:
                yield item
        finally:
            self.turn.leave()


async def begin(turn: Turn) -> Begun:
    """Wait for the first item.

    Raises:
        SomaError: the turn was refused or failed before it said anything.
    """
    rest = turn.items()
    return Begun(turn=turn, first=await anext(rest), rest=rest)


async def collect(request: Request, turn: Turn) -> tuple[list[Piece], Ended]:
    """The whole turn; a client who leaves meanwhile ends it.

    Raises:
        SomaError: the turn failed.
    """
    watcher = asyncio.create_task(_leave_with_client(request, turn))
    pieces: list[Piece] = []
    try:
        async with aclosing(turn.items()) as items:
            async for item in items:
                if isinstance(item, Ended):
                    return pieces, item
                pieces.append(item)
    finally:
        watcher.cancel()
        await asyncio.wait([watcher])
    raise AssertionError("a turn always ends")  # pragma: no cover


async def _leave_with_client(request: Request, turn: Turn) -> None:
    try:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    except Exception:  # noqa: BLE001, S110 — some servers end the wait of a client who left so
        pass
    turn.leave()


async def server_sent(chunks: AsyncGenerator[dict[str, Any]]) -> AsyncIterator[str]:
    """Frame chunks as `data:` events; an error becomes the last event before `[DONE]`."""
    try:
        async with aclosing(chunks) as open_chunks:
            async for chunk in open_chunks:
                yield _event(chunk)
    except SomaError as error:
        _, body, _ = describe(error)
        yield _event(body)
    yield "data: [DONE]\n\n"


def _event(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n"
