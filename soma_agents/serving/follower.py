"""Following the log from now on, for what is kept in memory beside it."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from arbiters.envelope import Envelope
from arbiters.errors import SomaError, UnavailableError
from arbiters.ports import EventLog

log = structlog.get_logger(__name__)

POLL_SECONDS = 5.0
RETRY_SECONDS = 1.0


class Follower:
    """Hands every new event of `types` to `hear`, in order; again when that fails."""

    def __init__(
        self, events: EventLog, types: frozenset[str], hear: Callable[[Envelope], Awaitable[None]]
    ) -> None:
        self._events = events
        self._types = types
        self._hear = hear
        self.cursor = 0
        self._moved = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def skip(self) -> None:
        """Leave out what is in the log already."""
        self.cursor = await self._events.end()

    def start(self) -> None:
        """Follow from the cursor on, in a task."""
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def reached(self, offset: int, *, patience: float = 60.0) -> None:
        """Wait until everything up to this offset was heard.

        Raises:
            UnavailableError: that took longer than `patience` seconds.
        """
        try:
            async with asyncio.timeout(patience), self._moved:
                await self._moved.wait_for(lambda: self.cursor >= offset)
        except TimeoutError:
            raise UnavailableError(
                f"the gateway is at offset {self.cursor}, not yet at {offset}; ask again"
            ) from None

    async def _follow(self) -> None:
        while True:
            try:
                batch = await self._events.read(self.cursor, types=self._types, wait=POLL_SECONDS)
                for envelope in batch.envelopes:
                    await self._hear(envelope)
            except SomaError as error:
                log.warning("could not follow the log; trying again", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            async with self._moved:
                self.cursor = max(self.cursor, batch.end)
                self._moved.notify_all()
