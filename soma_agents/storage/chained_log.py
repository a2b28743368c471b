"""What the event logs of all engines share: groups, batches, waiting, verifying."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arbiters.envelope import Envelope
from arbiters.errors import BusyError, CorruptError, InvalidError, UnavailableError
from arbiters.records import Batch
from soma_agents.storage.chain import Entry, entries, holds
from soma_agents.storage.database import Row

_GROUP = 4000
"""Envelopes in one commit at most."""
WAITING = 20_000
"""Envelopes that may wait for their commit: about a second of work, some tens of megabytes."""
_SCAN = 20_000
"""Offsets looked at in one query, so that a search for rare types lets writers through."""


class ChainedLog(ABC):
    """Implements `arbiters.ports.EventLog` over an engine that stores and selects rows.

    Args:
        place: where the rows are, as it is named to people.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._news = asyncio.Condition()
        self._told = 0
        self._queue: list[_Request] = []
        self._waiting = 0
        self._writer: asyncio.Task[None] | None = None
        self._closed = False

    # --- what an engine does ---------------------------------------------------------------

    @abstractmethod
    async def end(self) -> int:
        """See `EventLog.end`."""

    @abstractmethod
    async def _commit(self, entries: Sequence[Entry]) -> dict[str, int]:
        """Store those whose idempotency key is new and return the offset of every key."""

    @abstractmethod
    async def _select(
        self, after: int, upto: int, limit: int, types: frozenset[str] | None
    ) -> list[Row]:
        """`ENVELOPE_COLUMNS` of what was not erased, in order."""

    @abstractmethod
    async def _rows(self, after: int) -> list[Row]:
        """`ALL_COLUMNS` of the next rows, in order."""

    @abstractmethod
    async def _shut(self) -> None:
        """Let go of what the engine holds."""

    @abstractmethod
    async def find(self, event: str) -> Envelope | None:
        """See `EventLog.find`."""

    @abstractmethod
    async def caused_by(self, event: str) -> list[Envelope]:
        """See `EventLog.caused_by`."""

    @abstractmethod
    async def erase(self, events: Sequence[str]) -> int:
        """See `EventLog.erase`."""

    @abstractmethod
    async def copy(self, target: Path) -> None:
        """Write all that is in the log into a new file.

        Raises:
            InvalidError: the engine's own tools do that.
        """

    async def close(self) -> None:
        """Write what waits to be written, then let go of the engine."""
        self._closed = True
        if self._writer is not None:
            await asyncio.shield(self._writer)
        await self._shut()

    # --- appending -------------------------------------------------------------------------

    async def append(self, envelopes: Sequence[Envelope]) -> list[int]:
        """See `EventLog.append`. Cancelling the caller does not take the envelopes back."""
        return await self.append_rows(envelopes)

    async def append_rows(self, rows: Sequence[Row]) -> list[int]:
        """`append` for envelopes as rows of `ENVELOPE_COLUMNS`; their offsets do not matter."""
        if self._closed:
            raise UnavailableError("the event log is closed; start SOMA again")
        if not rows:
            return []
        # One that is larger than the bound has its turn when nobody else waits.
        if self._waiting and self._waiting + len(rows) > WAITING:
            raise BusyError(
                f"{self._waiting} events wait to be stored in {self.place}, "
                f"{len(rows)} more have no room; say them again in a moment"
            )
        request = _Request(
            entries(rows),
            asyncio.get_running_loop().create_future(),
        )
        self._queue.append(request)
        self._waiting += len(request.entries)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await asyncio.shield(request.offsets)

    async def _write(self) -> None:
        """Commit group after group until nobody waits."""
        while self._queue:
            await self._store(self._next_group())

    async def _store(self, group: Sequence["_Request"]) -> None:
        try:
            offsets = await self._commit([e for request in group for e in request.entries])
        except Exception as error:  # noqa: BLE001 - raised where it was appended
            if len(group) > 1 and isinstance(error, InvalidError):
                # One of them cannot be stored; that is no fault of the others.
                for request in group:
                    await self._store([request])
                return
            for request in group:
                request.fail(error)
            return
        for request in group:
            request.succeed([offsets[entry.idempotency] for entry in request.entries])
        await self._announce()

    def _next_group(self) -> list["_Request"]:
        size = count = 0
        for request in self._queue:
            size += len(request.entries)
            if count and size > _GROUP:
                break
            count += 1
        group, self._queue = self._queue[:count], self._queue[count:]
        self._waiting -= sum(len(request.entries) for request in group)
        return group

    # --- reading ---------------------------------------------------------------------------

    async def read(
        self, after: int, *, limit: int = 500, types: frozenset[str] | None = None, wait: float = 0
    ) -> Batch:
        """See `EventLog.read`."""
        rows, end = await self.read_rows(after, limit=limit, types=types, wait=wait)
        return Batch(envelopes=[Envelope._make(row) for row in rows], end=end)

    async def read_rows(
        self, after: int, *, limit: int, types: frozenset[str] | None, wait: float
    ) -> tuple[list[Row], int]:
        """`read` for envelopes as `ENVELOPE_COLUMNS`: the rows, and up to where they reach."""
        if wait > 0:
            await self._wait_beyond(after, types, wait)
        end = await self.end()
        while after < end:
            upto = end if types is None else min(end, after + _SCAN)
            rows = await self._select(after, upto, limit, types)
            if len(rows) == limit:
                return rows, rows[-1][0]
            if rows:
                return rows, upto
            after = upto
        return [], after

    async def _wait_beyond(self, offset: int, types: frozenset[str] | None, seconds: float) -> None:
        """Until there may be one of `types` beyond `offset`."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    told, end = self._told, await self.end()
                    if offset < end and (types is None or await self._may_hold(offset, end, types)):
                        return
                    offset = max(offset, end)
                    await self._listen(told)
        except TimeoutError:
            pass

    async def _may_hold(self, after: int, upto: int, types: frozenset[str]) -> bool:
        """Whether there may be one of `types` between two offsets."""
        return bool(await self._select(after, upto, 1, types))

    async def _listen(self, told: int) -> None:
        """Wait for news later than number `told`, or for a good moment to look again."""
        async with self._news:
            await self._news.wait_for(lambda: self._told != told)

    async def _announce(self) -> None:
        """There is something new: wake whoever waits."""
        self._told += 1
        async with self._news:
            self._news.notify_all()

    # --- verifying -------------------------------------------------------------------------

    async def verify(self) -> int:
        """See `EventLog.verify`."""
        last_hash, checked, end = b"", 0, await self.end()
        while checked < end:
            rows = await self._rows(checked)
            if not rows:
                raise self._break(checked + 1)
            for row in rows:
                if row[0] != checked + 1 or not holds(row, last_hash):
                    raise self._break(checked + 1)
                last_hash, checked = row[-1], row[0]
        return checked

    def _break(self, offset: int) -> CorruptError:
        return CorruptError(
            f"{self.place}: the chain of hashes breaks at offset {offset}; "
            "restore the log from a backup"
        )


@dataclass(frozen=True, slots=True)
class _Request:
    """What one caller appends, and where it waits for the offsets."""

    entries: Sequence[Entry]
    offsets: asyncio.Future[list[int]]

    def succeed(self, offsets: list[int]) -> None:
        if not self.offsets.done():
            self.offsets.set_result(offsets)

    def fail(self, error: Exception) -> None:
        if not self.offsets.done():
            self.offsets.set_exception(error)
