"""The event log as a Ray actor, and its client. Envelopes travel in batches, as JSON."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from arbiters.errors import ConflictError, UnavailableError
from arbiters.events import Envelope
from arbiters.records import Batch
from soma_agents.cluster.calls import NamedActor
from soma_agents.cluster.names import BUS
from soma_agents.settings import Settings
from soma_agents.storage.engines import open_log

MAX_CALLS = 1000
"""Calls at once; a long poll holds one."""
_OPEN_SECONDS = 20

_ENVELOPES = TypeAdapter(list[Envelope])


def encode(envelopes: Sequence[Envelope]) -> bytes:
    """A batch for the wire. Pickled models would take several times as long."""
    # As plain fields: a model on its own would write NaN as null, and the reader would refuse it.
    return to_json([envelope.__dict__ for envelope in envelopes], inf_nan_mode="constants")


def decode(batch: bytes) -> list[Envelope]:
    """A batch from the wire."""
    return _ENVELOPES.validate_json(batch)


class Bus:
    """The one owner of the event log's file, or this cluster's way to its server."""

    async def __init__(self, settings: str, prepare: Callable[[str], None]) -> None:
        prepare(BUS)
        known = Settings.model_validate_json(settings)
        self._log = await opened(lambda: open_log(known))

    async def append(self, batch: bytes) -> list[int]:
        return await self._log.append(decode(batch))

    async def read(
        self, after: int, limit: int, types: frozenset[str] | None, wait: float
    ) -> tuple[bytes, int]:
        batch = await self._log.read(after, limit=limit, types=types, wait=wait)
        return encode(batch.envelopes), batch.end

    async def end(self) -> int:
        return await self._log.end()

    async def find(self, event: str) -> bytes:
        found = await self._log.find(event)
        return encode([found] if found else [])

    async def caused_by(self, event: str) -> bytes:
        return encode(await self._log.caused_by(event))

    async def erase(self, events: Sequence[str]) -> int:
        return await self._log.erase(events)

    async def verify(self) -> int:
        return await self._log.verify()

    async def ping(self) -> int:
        """A read that touches the engine; the newest offset."""
        await self._log.find("")
        return await self._log.end()

    async def stop(self) -> None:
        """Write what waits to be written and close the log."""
        await self._log.close()


class RayEventLog:
    """Implements `arbiters.ports.EventLog` over the bus, across its restarts.

    Every call may be repeated: appends are known again by their idempotency keys.

    Raises:
        UnavailableError: from any method, when the bus was not there for `patience` seconds.
    """

    def __init__(self, *, name: str = BUS, patience: float = 30.0) -> None:
        self._bus = NamedActor(name, patience=patience)

    async def append(self, envelopes: Sequence[Envelope]) -> list[int]:
        if not envelopes:
            return []
        return await self._bus.call("append", encode(envelopes), again=True)

    async def read(
        self, after: int, *, limit: int = 500, types: frozenset[str] | None = None, wait: float = 0
    ) -> Batch:
        batch, end = await self._bus.call("read", after, limit, types, wait, again=True, allow=wait)
        return Batch(envelopes=decode(batch), end=end)

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
