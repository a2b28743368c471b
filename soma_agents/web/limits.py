"""How large a request may be and how often one may ask. Pure ASGI, before anything is parsed."""

import math
import time
from collections import Counter, OrderedDict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policies.access import Bucket, Deny, RateRules, admit, has_place
from soma_agents.serving.gateway import Caller
from soma_agents.web.auth import OPEN_PATHS
from soma_agents.web.dependencies import Identity
from soma_agents.web.errors import plain

DRAINED = 64_000_000
"""Bytes read and thrown away of a body that is too large, so that its sender hears the answer."""
BUCKETS = 10_000
"""Callers remembered, the longest silent forgotten first."""


class RateLimit:
    """429 for callers who ask more often than the rules allow; each key has its own bucket."""

    def __init__(self, app: ASGIApp, *, rules: RateRules) -> None:
        self._app = app
        self._rules = rules
        self._buckets: OrderedDict[tuple[str, str], Bucket] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity: Identity | None = scope.get("soma.identity")
        if scope["type"] != "http" or identity is None or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        caller = (identity.caller.tenant, identity.key)
        decision = admit(self._buckets.get(caller), now=time.monotonic(), rules=self._rules)
        self._buckets[caller] = decision.bucket
        self._buckets.move_to_end(caller)
        while len(self._buckets) > BUCKETS:
            self._buckets.popitem(last=False)
        if isinstance(decision, Deny):
            wait = str(max(1, math.ceil(decision.retry_after)))
            answer = plain(429, f"{decision.because}; wait {wait} s", {"Retry-After": wait})
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


class Places:
    """429 when too many replies are being made, or too many of them for this caller."""

    def __init__(self, app: ASGIApp, *, capacity: int, paths: frozenset[str]) -> None:
        self._app = app
        self._capacity = capacity
        self._paths = paths
        self._taken: Counter[Caller] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity: Identity | None = scope.get("soma.identity")
        if scope["type"] != "http" or identity is None or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        caller, taken = identity.caller, self._taken.total()
        if not has_place(taken=taken, own=self._taken[caller], capacity=self._capacity):
            message = f"{taken} requests are under way or waiting; ask again in a moment"
            await plain(429, message, {"Retry-After": "1"})(scope, receive, send)
            return
        self._taken[caller] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._taken[caller] -= 1
            if not self._taken[caller]:
                del self._taken[caller]


class BodyLimit:
    """413 for bodies beyond the limit, whether or not they say their length."""

    def __init__(self, app: ASGIApp, *, limit: int, limits: dict[str, int]) -> None:
        self._app = app
        self._limit = limit
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD", "DELETE", "OPTIONS"}:
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], self._limit)
        body = await _read(receive, limit)
        if body is None:
            answer = plain(413, f"the body has more than {limit} bytes; send less at a time")
            await answer(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The body, or None when it is larger than the limit or its sender left."""
    chunks: list[bytes] = []
    size, more = 0, True
    while more and size <= max(limit, DRAINED):
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        else:
            chunks.clear()
        more = message.get("more_body", False)
    return b"".join(chunks) if size <= limit else None


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
