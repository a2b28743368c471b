"""In Serve's proxy: who was just refused for asking too much hears the same again from there.

A refusal by the replica costs it and the way to it some milliseconds on the cores that the model
computes on: whoever asks ten times too often would take a good part of everybody's answers.
"""

import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REPEAT_SECONDS = 0.5
"""Shorter than any `Retry-After`, and than it takes to empty the places of those who wait."""
_CALLERS = 1_000
_TOO_MANY_REQUESTS = 429

_Key = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class _Refusal:
    until: float
    messages: tuple[Message, ...]


class RepeatRefusals:
    """Answers a POST with the last 429 to the same path and key while that is fresh."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._refusals: dict[_Key, _Refusal] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        key = (scope["path"], dict(scope["headers"]).get(b"authorization", b""))
        known = self._refusals.get(key)
        if known is not None and time.monotonic() < known.until:
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
