"""In Serve's proxy: who was just refused for asking too much hears the same again from there.

A refusal by the replica costs it and the way to it some milliseconds on the cores that the model
computes on: whoever asks ten times too often would take a good part of everybody's answers. Nor
does a refusal interrupt a decoding step, in which each thread waits for the other's: while there are
any, the proxy waits until a core's turn is over (`sched(7)`, SCHED_BATCH), and then answers many.
"""

import asyncio
import os
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REPEAT_SECONDS = 0.5
"""Shorter than any `Retry-After`, and than it takes to empty the places of those who wait."""
CALM_SECONDS = 2.0
"""Without a refusal, until the proxy is as quick as ever."""
_CALLERS = 1_000
_TOO_MANY_REQUESTS = 429

_Key = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class _Refusal:
    until: float
    messages: tuple[Message, ...]


class _Turns:
    """Has the calling thread, one that runs an event loop, wait for its turn while there is a flood."""

    def __init__(self) -> None:
        self._until = 0.0
        self._waits = False

    def wait(self) -> None:
        """Take no core from others for the next `CALM_SECONDS`."""
        self._until = time.monotonic() + CALM_SECONDS
        if not self._waits and hasattr(os, "SCHED_BATCH"):
            self._waits = True
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            asyncio.get_running_loop().call_later(CALM_SECONDS, self._look)

    def _look(self) -> None:
        if (rest := self._until - time.monotonic()) > 0:
            asyncio.get_running_loop().call_later(rest, self._look)
            return
        self._waits = False
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class RepeatRefusals:
    """Answers a POST with the last 429 to the same path and key while that is fresh."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._refusals: dict[_Key, _Refusal] = {}
        self._turns = _Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        key = (scope["path"], dict(scope["headers"]).get(b"authorization", b""))
        known = self._refusals.get(key)
        if known is not None and time.monotonic() < known.until:
            self._turns.wait()
            for message in known.messages:
                await send(message)
            return
        said = list[Message]()

        async def pass_on(message: Message) -> None:
            await send(message)
            if said or message.get("status") == _TOO_MANY_REQUESTS:
                said.append(message)

        await self._app(scope, receive, pass_on)
        if said:
            self._remember(key, said)

    def _remember(self, key: _Key, said: list[Message]) -> None:
        now = time.monotonic()
        if len(self._refusals) >= _CALLERS:
            self._refusals = {k: r for k, r in self._refusals.items() if now < r.until}
        if len(self._refusals) < _CALLERS:
            self._refusals[key] = _Refusal(now + REPEAT_SECONDS, tuple(said))
