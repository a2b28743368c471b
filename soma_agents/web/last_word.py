"""In Serve's proxy: what a client is told when the replica that answers it dies.

The replica can say nothing any more, and the proxy alone would break the stream off or answer in
plain text. Named to Ray by `PROXY_CALLBACK`; light, since the proxy's process has little else.
"""

import json

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from soma_agents.web.refusals import RepeatRefusals

PROXY_CALLBACK = "soma_agents.web.last_word:middlewares"
RETRY_SECONDS = b"5"
"""About how long a replica takes to come back, where the model is small."""
_SERVER_ERROR = 500
_BODY = json.dumps(
    {
        "error": {
            "message": "the process that answered is gone and a new one starts; ask again",
            "type": "service_unavailable",
            "param": None,
            "code": None,
        }
    }
).encode()


def middlewares() -> list[Middleware]:
    """What Serve puts around its proxy."""
    return [Middleware(RepeatRefusals), Middleware(LastWord)]


class LastWord:
    """Ends what its application did not: streams by an error event, failures as JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        await self._app(scope, receive, answer.pass_on)
        await answer.end()


class _Answer:
    """One response on its way to the client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._streams = self._over = self._replaced = False

    async def pass_on(self, message: Message) -> None:
        """Send on what the application says, unless it is the proxy's own plain failure."""
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._streams = kind.startswith(b"text/event-stream")
            # SOMA says everything in JSON: a failure in plain text is not its own.
            if message["status"] >= _SERVER_ERROR and kind.startswith(b"text/plain"):
                self._replaced = True
                await self._fail()
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._over = True
        if not self._replaced:
            await self._send(message)

    async def _fail(self) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(_BODY)),
            (b"retry-after", RETRY_SECONDS),
        ]
        await self._send({"type": "http.response.start", "status": 503, "headers": headers})
        await self._send({"type": "http.response.body", "body": _BODY})

    async def end(self) -> None:
        """Say of a stream that has no end that it broke off."""
        if self._streams and not self._over:
            last = b"data: " + _BODY + b"\n\ndata: [DONE]\n\n"
            await self._send({"type": "http.response.body", "body": last})
