"""The fake clock, names, event log and ledger, and the shortest way to run a handler."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic_core import to_json

from arbiters.envelope import Envelope
from arbiters.errors import InvalidError
from arbiters.events import Event
from arbiters.kernel.arbiter import Arbiter
from arbiters.kernel.bus import Publisher
from arbiters.records import Batch, DeadLetter

# --- time, names, events -------------------------------------------------------------------


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start

    def now(self) -> datetime:
        return self._now

    def advance(self, **units: float) -> datetime:
        """Move on by a `timedelta(**units)`, e.g. `advance(hours=2)`."""
        self._now += timedelta(**units)
        return self._now


class SequentialIds:
    """Names that count: id-00000001, id-00000002, and so on."""

    def __init__(self, prefix: str = "id") -> None:
        self._prefix = prefix
        self._last = 0

    def new(self) -> str:
        self._last += 1
        return f"{self._prefix}-{self._last:08d}"


def enveloped(event: Event, **circumstances: Any) -> Envelope:
    """An envelope around an event; any field can be given, e.g. `user="eve"`, `offset=7`."""
    publisher = Publisher(
        log=MemoryEventLog(), clock=FakeClock(), ids=SequentialIds("event"), producer="test"
    )
    if "payload" in circumstances:
        circumstances["body"] = to_json(circumstances.pop("payload")).decode()
    return publisher.wrap(event)._replace(**circumstances)


async def react(arbiter: Arbiter, event: Event, **circumstances: Any) -> list[Event]:
    """What an arbiter says about an event."""
    return [said async for said in arbiter.hear(event, enveloped(event, **circumstances))]


# --- the log and the ledger ----------------------------------------------------------------


class MemoryEventLog:
    """An `EventLog` as a list."""

    def __init__(self) -> None:
        self._envelopes: list[Envelope] = []
        self._offsets: dict[str, int] = {}
        self._erased: set[int] = set()
        self._news = asyncio.Condition()

    async def append(self, envelopes: Sequence[Envelope]) -> list[int]:
        new: dict[str, Envelope] = {}
        for envelope in envelopes:
            if envelope.idempotency not in self._offsets:
                new.setdefault(envelope.idempotency, envelope)
        ids = [envelope.id for envelope in (*self._envelopes, *new.values())]
        if len(set(ids)) < len(ids):
            raise InvalidError(f"an event bears another's id among {ids[-len(new) :]!r}")
        for offset, envelope in enumerate(new.values(), start=len(self._envelopes) + 1):
            self._envelopes.append(envelope._replace(offset=offset))
            self._offsets[envelope.idempotency] = offset
        async with self._news:
            self._news.notify_all()
        return [self._offsets[envelope.idempotency] for envelope in envelopes]

    async def read(
        self, after: int, *, limit: int = 500, types: frozenset[str] | None = None, wait: float = 0
    ) -> Batch:
        def found() -> list[Envelope]:
            return [
                envelope
                for envelope in self._envelopes[after:]
                if (types is None or envelope.type in types) and envelope.offset not in self._erased
            ]

        if wait > 0:
            try:
                async with asyncio.timeout(wait), self._news:
                    await self._news.wait_for(found)
            except TimeoutError:
                pass
        there = found()
        if len(there) >= limit:
            return Batch(envelopes=there[:limit], end=there[limit - 1].offset)
        return Batch(envelopes=there, end=max(after, len(self._envelopes)))

    async def end(self) -> int:
        return len(self._envelopes)

    async def find(self, event: str) -> Envelope | None:
        return next((envelope for envelope in self._envelopes if envelope.id == event), None)

    async def caused_by(self, event: str) -> list[Envelope]:
        return [envelope for envelope in self._envelopes if envelope.cause == event]

    async def erase(self, events: Sequence[str]) -> int:
        ids = set(events)
        found = [e for e in self._envelopes if e.id in ids and e.offset not in self._erased]
        for envelope in found:
            self._erased.add(envelope.offset)
            self._envelopes[envelope.offset - 1] = envelope._replace(body=None)
        return len(found)

    async def verify(self) -> int:
        return len(self._envelopes)


class Memory:
    """Base of what takes part in a transaction: flat containers of values that never change."""

    def snapshot(self) -> dict[str, Any]:
        return {name: copy(value) for name, value in vars(self).items()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        vars(self).update(snapshot)


class MemoryLedger(Memory):
    """A `Ledger`; the stores given to it share its transactions."""

    def __init__(self, *stores: Memory) -> None:
        self._cursor = 0
        self._outbox: list[Envelope] = []
        self._attempts: dict[int, int] = {}
        self._letters: dict[str, DeadLetter] = {}
        self._stores = stores
        self._owner: asyncio.Task[Any] | None = None
        self._lock = asyncio.Lock()

    def snapshot(self) -> dict[str, Any]:
        state = ("_cursor", "_outbox", "_attempts", "_letters")
        return {name: copy(vars(self)[name]) for name in state}

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        if self._owner is asyncio.current_task():
            async with self._undoing():
                yield
            return
        async with self._lock:
            self._owner = asyncio.current_task()
            try:
                async with self._undoing():
                    yield
            finally:
                self._owner = None

    @asynccontextmanager
    async def _undoing(self) -> AsyncGenerator[None]:
        before = [(memory, memory.snapshot()) for memory in (self, *self._stores)]
        try:
            yield
        except BaseException:
            for memory, snapshot in before:
                memory.restore(snapshot)
            raise

    async def cursor(self) -> int:
        return self._cursor

    async def advance(self, offset: int, said: Sequence[Envelope]) -> None:
        self._cursor = max(self._cursor, offset)
        self._outbox.extend(said)
        self._attempts = {at: n for at, n in self._attempts.items() if at > offset}

    async def outbox(self) -> list[Envelope]:
        return list(self._outbox)

    async def sent(self, envelopes: Sequence[Envelope]) -> None:
        gone = {envelope.id for envelope in envelopes}
        self._outbox = [envelope for envelope in self._outbox if envelope.id not in gone]

    async def attempt(self, offset: int) -> int:
        before = self._attempts.get(offset, 0)
        self._attempts[offset] = before + 1
        return before

    async def forgive(self, offset: int) -> None:
        if self._attempts.get(offset, 0) > 0:
            self._attempts[offset] -= 1

    async def bury(self, letter: DeadLetter) -> None:
        self._letters[letter.envelope.id] = letter

    async def dead_letters(self) -> list[DeadLetter]:
        return list(self._letters.values())

    async def exhume(self, event: str) -> Envelope | None:
        letter = self._letters.pop(event, None)
        return letter.envelope if letter else None
