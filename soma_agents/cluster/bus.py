"""The event log as a Ray actor, and its client.

Envelopes travel in batches, as an array of rows in the order of the log's columns (`wire`): the bus
neither makes envelopes of them nor looks into payloads. What is said and heard all day, appends
and reads, goes over a line where there is one (the actor is on the same machine), through Ray else.
"""

import asyncio
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import structlog

from arbiters.envelope import Envelope
from arbiters.errors import ConflictError, InvalidError, UnavailableError
from arbiters.records import Batch
from soma_agents.cluster.calls import NamedActor
from soma_agents.cluster.head import session_root
from soma_agents.cluster.line import Exchange, Line
from soma_agents.cluster.names import BUS
from soma_agents.cluster.wire import pack, pack_all, unpack
from soma_agents.settings import Settings
from soma_agents.storage.chain import cannot_store
from soma_agents.storage.database import Row
from soma_agents.storage.engines import open_log

MAX_CALLS = 1000
"""Calls at once; a long poll holds one."""
MAX_TOGETHER = 500
"""Appends of one process that go out in one call."""
_WRITTEN_ROWS = 20_000
"""Rows that are kept as they are written on the wire, for all who read them."""
COLLECT_AFTER = 50_000
"""Objects made, less those that died, before the garbage collector looks at them."""
_OPEN_SECONDS = 20

log = structlog.get_logger(__name__)


def encode(envelopes: Sequence[Envelope]) -> bytes:
    """A batch for the wire."""
    return pack([tuple(envelope) for envelope in envelopes])


def decode(batch: bytes) -> list[Envelope]:
    """A batch from the wire."""
    return [Envelope._make(row) for row in unpack(batch)]


class Bus:
    """The one owner of the event log's file, or this cluster's way to its server."""

    async def __init__(self, settings: str, prepare: Callable[[str], None]) -> None:
        prepare(BUS)
        spare_the_collector()
        known = Settings.model_validate_json(settings)
        self._log = await opened(lambda: open_log(known))
        self._written: dict[int, bytes] = {}
        self._door = session_root(known) / "bus.sock"
        self._exchange = Exchange({"append": self.append, "read": self.read})
        await self._open_door()

    async def _open_door(self) -> None:
        try:
            await self._exchange.open(self._door)
        except OSError as error:
            # A file system without sockets: calls through Ray do the same, slowly.
            log.warning("no line to the bus", path=str(self._door), error=str(error))

    async def door(self) -> str:
        """Where lines to the bus are opened, on its machine."""
        return str(self._door)

    async def append(self, batch: bytes) -> bytes:
        """`EventLog.append` for a batch; the offsets."""
        return pack(await self._log.append_rows(unpack(batch)))

    async def read(self, request: bytes) -> bytes:
        """`EventLog.read` for `[after, limit, types, wait]`; `[end, row, row …]`."""
        after, limit, types, wait = unpack(request)
        rows, end = await self._log.read_rows(
            after, limit=limit, types=None if types is None else frozenset(types), wait=wait
        )
        written = [self._written.get(row[0]) or self._write(row) for row in rows]
        return pack_all([pack(end), *written])

    def _write(self, row: Row) -> bytes:
        if len(self._written) >= _WRITTEN_ROWS:
            self._written.clear()
        self._written[row[0]] = pack(row)
        return self._written[row[0]]

    async def end(self) -> int:
        return await self._log.end()

    async def find(self, event: str) -> bytes:
        found = await self._log.find(event)
        return encode([found] if found else [])

    async def caused_by(self, event: str) -> bytes:
        return encode(await self._log.caused_by(event))

    async def erase(self, events: Sequence[str]) -> int:
        erased = await self._log.erase(events)
        self._written.clear()
        return erased

    async def verify(self) -> int:
        return await self._log.verify()

    async def copy(self, target: str) -> None:
        await self._log.copy(Path(target))

    async def ping(self) -> int:
        """A read that touches the engine; the newest offset."""
        await self._log.find("")
        return await self._log.end()

    async def stop(self) -> None:
        """Write what waits to be written and close the log."""
        await self._log.close()
        self._exchange.close()
        self._door.unlink(missing_ok=True)


class RayEventLog:
    """Implements `arbiters.ports.EventLog` over the bus, across its restarts.

    Every call may be repeated: appends are known again by their idempotency keys.

    Raises:
        UnavailableError: from any method, when the bus was not there for `patience` seconds.
    """

    def __init__(self, *, name: str = BUS, patience: float = 30.0) -> None:
        self._bus = NamedActor(name, patience=patience)
        self._patience = patience
        self._line: Line | None = None
        self._elsewhere = False
        """Whether there is no door to the bus on this machine."""
        self._opening = asyncio.Lock()
        self._waiting: list[_Append] = []
        self._sender: asyncio.Task[None] | None = None

    async def append(self, envelopes: Sequence[Envelope]) -> list[int]:
        """See `EventLog.append`. What is appended during a call goes out together in the next."""
        if not envelopes:
            return []
        request = _Append(
            [tuple(envelope) for envelope in envelopes],
            asyncio.get_running_loop().create_future(),
        )
        self._waiting.append(request)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await asyncio.shield(request.offsets)

    async def _send(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
            await self._deliver(group)

    async def _deliver(self, group: Sequence["_Append"]) -> None:
        try:
            offsets = iter(await self._append([row for one in group for row in one.rows]))
        except InvalidError as error:
            if len(group) == 1:
                group[0].offsets.set_exception(error)
                return
            for one in group:  # one of them is at fault: that is not for the others to bear
                await self._deliver([one])
        except Exception as error:  # noqa: BLE001 - raised where it was appended
            for one in group:
                one.offsets.set_exception(error)
        else:
            for one in group:
                one.offsets.set_result(list(islice(offsets, len(one.rows))))

    async def _append(self, rows: list[Row]) -> list[int]:
        try:
            batch = pack(rows)
        except ValueError as error:
            raise cannot_store(rows[0], error) from error
        return list(unpack(await self._ask("append", batch)))

    async def read(
        self, after: int, *, limit: int = 500, types: frozenset[str] | None = None, wait: float = 0
    ) -> Batch:
        request = pack([after, limit, None if types is None else list(types), wait])
        end, *rows = unpack(await self._ask("read", request, allow=wait))
        return Batch(envelopes=list(map(Envelope._make, rows)), end=end)

    async def _ask(self, method: str, body: bytes, *, allow: float = 0.0) -> bytes:
        """Over the line, unless there is none or it breaks: Ray's calls outlast a restart."""
        try:
            async with asyncio.timeout(self._patience + allow):
                if (line := await self._open_line()) is not None:
                    return await line.call(method, body)
        except TimeoutError:
            raise UnavailableError(
                f"the bus did not answer {method!r} in {self._patience:g} s; see `soma status`"
            ) from None
        except OSError:
            pass  # it just died
        return await self._bus.call(method, body, again=True, allow=allow)

    async def _open_line(self) -> Line | None:
        async with self._opening:
            if not self._elsewhere and (self._line is None or self._line.broken):
                path = Path(await self._bus.call("door", again=True))
                try:
                    self._line = await Line.open(path)
                except FileNotFoundError:
                    self._elsewhere = True
            return self._line

    async def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._line.close()

    async def end(self) -> int:
        return await self._bus.call("end", again=True)

    async def find(self, event: str) -> Envelope | None:
        found = decode(await self._bus.call("find", event, again=True))
        return found[0] if found else None

    async def caused_by(self, event: str) -> list[Envelope]:
        return decode(await self._bus.call("caused_by", event, again=True))

    async def erase(self, events: Sequence[str]) -> int:
        return await self._bus.call("erase", list(events), again=True, allow=60)

    async def verify(self) -> int:
        return await self._bus.call("verify", again=True, allow=3600)


@dataclass(frozen=True, slots=True)
class _Append:
    """What one caller appends, and where it waits for the offsets."""

    rows: list[Row]
    offsets: asyncio.Future[list[int]]


def spare_the_collector() -> None:
    """Batches make thousands of objects that die by their counts; searching them costs a third."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


async def opened(open_: Any, *, seconds: float = _OPEN_SECONDS) -> Any:
    """Open a file whose last owner may still be on its way out, or a server on its way in.

    Raises:
        ConflictError: another process keeps it open.
        UnavailableError: it does not come.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await open_()
        except (ConflictError, UnavailableError):
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)
