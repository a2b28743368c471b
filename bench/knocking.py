"""A client that takes little of the cores that it shares with whom it asks.

What a flood is sent with is no part of what it does to SOMA: a client for every purpose would take
a tenth of a core for each hundred requests a second.
"""

import asyncio
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

OK = 200


class Answer(NamedTuple):
    """Of a response what matters here."""

    status: int
    says_when: bool
    """Whether it has `Retry-After`."""


class _Connection(asyncio.Protocol):
    """One request at a time, over HTTP/1.1; responses tell their length."""

    def __init__(self) -> None:
        self._arrived = b""
        self._answer: asyncio.Future[Answer] | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._arrived += data
        head, found, body = self._arrived.partition(b"\r\n\r\n")
        if not found or self._answer is None:
            return
        head = head.lower()
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) >= int(length) and not self._answer.done():
            self._arrived = b""
            status = int(head.split(b" ", 2)[1])
            self._answer.set_result(Answer(status, b"\nretry-after:" in head))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError(str(exc or "closed")))

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its response."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer


class Client:
    """One caller with as many connections as it has requests under way."""

    def __init__(self, url: str, key: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "127.0.0.1", address.port or 80
        self._head = (
            f"Host: {address.netloc}\r\nAuthorization: Bearer {key}\r\n"
            "Content-Type: application/json\r\n"
        )
        self._idle: list[_Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection.transport.close()

    async def post(self, path: str, body: bytes) -> Answer:
        """POST JSON.

        Raises:
            OSError: nobody listens, or the connection broke.
        """
        head = f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        connection = await self._connection()
        answer = await connection.ask(head.encode() + body)
        self._idle.append(connection)
        return answer

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        return connection
