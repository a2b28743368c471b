"""A line to an actor on the same machine: a Unix socket beside Ray's calls, and cheaper than they.

Request and answer are frames: three numbers, big endian (length of what follows, number of the
call, length of the name), a name, a body. A request's name is the method; an answer's is empty,
or that of the error of ours which the method raised, and then the body is what it said.
"""

import asyncio
import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from pydantic_core import from_json, to_json

from arbiters import errors
from arbiters.errors import BusyError, SomaError

Method = Callable[[bytes], Awaitable[bytes]]

_FRAME = struct.Struct(">IIB")
_BEFORE_LENGTH_COUNTS = 4

log = structlog.get_logger(__name__)


class _End(asyncio.Protocol, ABC):
    """One end of a connection: cuts what arrives into frames."""

    def __init__(self) -> None:
        self._arrived = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    @property
    def broken(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._arrived += data
        while len(self._arrived) >= _FRAME.size:
            length, call, named = _FRAME.unpack_from(self._arrived)
            end = _BEFORE_LENGTH_COUNTS + length
            if len(self._arrived) < end:
                return
            body = _FRAME.size + named
            name = self._arrived[_FRAME.size : body].decode()
            frame = bytes(memoryview(self._arrived)[body:end])
            del self._arrived[:end]
            self._take(call, name, frame)

    @abstractmethod
    def _take(self, call: int, name: str, body: bytes) -> None:
        """What to do with a frame."""

    def _send(self, call: int, name: str, body: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            word = name.encode()
            length = _FRAME.size - _BEFORE_LENGTH_COUNTS + len(word) + len(body)
            self._transport.writelines((_FRAME.pack(length, call, len(word)), word, body))

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


class Line(_End):
    """The caller's end. Calls do not wait for each other."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    @classmethod
    async def open(cls, path: Path) -> "Line":
        """Connect to whoever listens there; raises OSError when nobody does."""
        _, line = await asyncio.get_running_loop().create_unix_connection(cls, str(path))
        return line

    async def call(self, method: str, body: bytes) -> bytes:
        """Call a method and return its answer.

        Raises:
            ConnectionError: the line broke; nobody knows whether the call took effect.
            SomaError: whatever of ours the method raised.
        """
        if self.broken:
            raise ConnectionError("the line is broken")
        self._calls = (self._calls + 1) % 2**32
        call, answer = self._calls, asyncio.get_running_loop().create_future()
        self._waiting[call] = answer
        try:
            self._send(call, method, body)
            return await answer
        finally:
            self._waiting.pop(call, None)

    def _take(self, call: int, name: str, body: bytes) -> None:
        answer = self._waiting.get(call)
        if answer is None or answer.done():
            return  # whoever asked has left
        if name:
            answer.set_exception(_error(name, body))
        else:
            answer.set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionError(f"the line broke: {exc or 'closed'}"))


class Exchange:
    """The end that answers: runs the methods of an actor that are called over its lines.

    Args:
        methods: by the name they are called with; each takes and returns bytes.
    """

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = methods
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._lines: set[_Answering] = set()

    async def open(self, path: Path) -> None:
        """Listen at a path in a directory of the owner's own; raises OSError where that cannot be."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._answering, str(path))

    def close(self) -> None:
        """Hang up on everybody and listen no more."""
        if self._server is not None:
            self._server.close()
        for line in list(self._lines):
            line.close()

    def _answering(self) -> "_Answering":
        return _Answering(self._methods, self._running, self._lines)


class _Answering(_End):
    """One caller, as the exchange sees it."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        running: set[asyncio.Task[None]],
        lines: set["_Answering"],
    ) -> None:
        super().__init__()
        self._methods = methods
        self._running = running
        self._lines = lines
        lines.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """See `asyncio.Protocol`."""
        self._lines.discard(self)

    def _take(self, call: int, name: str, body: bytes) -> None:
        task = asyncio.create_task(self._answer(call, name, body))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, call: int, name: str, body: bytes) -> None:
        try:
            self._send(call, "", await self._methods[name](body))
        except SomaError as error:
            self._send(call, type(error).__name__, _told(error))
        except Exception:
            # The caller asks again through Ray, and is told there.
            log.exception("a call over the line failed", method=name)
            self.close()


def _told(error: SomaError) -> bytes:
    return to_json([str(error), getattr(error, "retry_after", None)])


def _error(name: str, body: bytes) -> SomaError:
    message, retry_after = from_json(body)
    kind: type[SomaError] = getattr(errors, name, SomaError)
    if kind is BusyError:
        return BusyError(message, retry_after=retry_after)
    return kind(message)
