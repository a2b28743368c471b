"""The event log in one SQLite file: appended in groups, chained by hashes, never rewritten."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from arbiters.errors import CorruptError, InvalidError, UnavailableError
from arbiters.events import Envelope
from arbiters.records import Batch
from soma_agents.storage.database import Database, Row, Schema, as_text

_GROUP = 4000
"""Envelopes in one commit at most."""
_SCAN = 20_000
"""Offsets looked at in one query, so that a search for rare types lets writers through."""
_SALT_BYTES = 16

_COLUMNS = (
    "offset, id, type, version, at, tenant, user, key, producer, cause, correlation, idempotency"
)
_FIELDS = tuple(_COLUMNS.split(", "))


class SqliteEventLog:
    """Implements `arbiters.ports.EventLog`.

    Each row bears sha256(hash of the row before, envelope without payload, payload hash). The
    payload's hash is salted and the salt is erased with the payload: otherwise a short message
    could be found again by guessing.
    """

    schema = Schema(
        "event_log",
        (
            """
            CREATE TABLE events (
                offset INTEGER PRIMARY KEY,
                id TEXT NOT NULL UNIQUE,
                type TEXT NOT NULL,
                version INTEGER NOT NULL,
                at TEXT NOT NULL,
                tenant TEXT NOT NULL,
                user TEXT NOT NULL,
                key TEXT NOT NULL,
                producer TEXT NOT NULL,
                cause TEXT,
                correlation TEXT NOT NULL,
                idempotency TEXT NOT NULL UNIQUE,
                payload TEXT,
                salt BLOB,
                payload_hash BLOB NOT NULL,
                hash BLOB NOT NULL
            ) STRICT;
            CREATE INDEX events_by_cause ON events (cause) WHERE cause IS NOT NULL;
            """,
        ),
    )

    def __init__(self, database: Database, end: int, last_hash: bytes) -> None:
        self._database = database
        self._end = end
        self._hash = last_hash
        self._newest: dict[str, int] = {}
        self._opened_at = end
        self._news = asyncio.Condition()
        self._queue: list[_Request] = []
        self._writer: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> "SqliteEventLog":
        """Open or create the log; raises what `Database.open` raises."""
        database = await Database.open(path, cls.schema)
        last = await database.row("SELECT offset, hash FROM events ORDER BY offset DESC LIMIT 1")
        end, last_hash = last or (0, b"")
        return cls(database, end, last_hash)

    async def close(self) -> None:
        """Write what waits to be written, then close the file."""
        self._closed = True
        if self._writer is not None:
            await asyncio.shield(self._writer)
        await self._database.close()

    # --- appending -------------------------------------------------------------------------

    async def append(self, envelopes: Sequence[Envelope]) -> list[int]:
        """See `EventLog.append`. Cancelling the caller does not take the envelopes back."""
        if self._closed:
            raise UnavailableError("the event log is closed; start SOMA again")
        if not envelopes:
            return []
        request = _Request(
            [_Entry.of(envelope) for envelope in envelopes],
            asyncio.get_running_loop().create_future(),
        )
        self._queue.append(request)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await asyncio.shield(request.offsets)

    async def _write(self) -> None:
        """Commit group after group until nobody waits."""
        while self._queue:
            group = self._next_group()
            try:
                offsets = await self._commit([e for request in group for e in request.entries])
            except Exception as error:  # noqa: BLE001 - raised where it was appended
                for request in group:
                    request.fail(error)
                continue
            for request in group:
                request.succeed([offsets[entry.idempotency] for entry in request.entries])
            async with self._news:
                self._news.notify_all()

    def _next_group(self) -> list["_Request"]:
        size = count = 0
        for request in self._queue:
            size += len(request.entries)
            if count and size > _GROUP:
                break
            count += 1
        group, self._queue = self._queue[:count], self._queue[count:]
        return group

    async def _commit(self, entries: Sequence["_Entry"]) -> dict[str, int]:
        """Store those whose idempotency key is new and return the offset of every key."""
        async with self._database.transaction():
            offsets = await self._known(entries)
            end, last_hash, rows = self._end, self._hash, list[Row]()
            for entry in entries:
                if entry.idempotency in offsets:
                    continue
                end += 1
                last_hash = _chain(last_hash, end, entry.header, entry.payload_hash)
                offsets[entry.idempotency] = end
                rows.append((end, *entry.columns, last_hash))
            if rows:
                marks = ", ".join("?" * len(rows[0]))
                await self._database.execute_many(f"INSERT INTO events VALUES ({marks})", rows)
        self._end, self._hash = end, last_hash
        self._newest |= {row[2]: row[0] for row in rows}
        return offsets

    async def _known(self, entries: Sequence["_Entry"]) -> dict[str, int]:
        keys = json.dumps([entry.idempotency for entry in entries])
        found = await self._database.rows(
            "SELECT idempotency, offset FROM events"
            " WHERE idempotency IN (SELECT value FROM json_each(?))",
            (keys,),
        )
        return dict(found)

    # --- reading ---------------------------------------------------------------------------

    async def read(
        self, after: int, *, limit: int = 500, types: frozenset[str] | None = None, wait: float = 0
    ) -> Batch:
        """See `EventLog.read`."""
        if wait > 0:
            await self._wait_beyond(after, types, wait)
        end = self._end
        while after < end:
            upto = end if types is None else min(end, after + _SCAN)
            rows = await self._select(after, upto, limit, types)
            envelopes = [_envelope(row) for row in rows]
            if len(envelopes) == limit:
                return Batch(envelopes=envelopes, end=envelopes[-1].offset)
            if envelopes:
                return Batch(envelopes=envelopes, end=upto)
            after = upto
        return Batch(envelopes=(), end=after)

    async def _wait_beyond(self, offset: int, types: frozenset[str] | None, seconds: float) -> None:
        """Until there may be one of `types` beyond `offset`.

        Of those from before the file was opened nobody knows the types without a look.
        """
        newest = self._newest

        def something() -> bool:
            if types is None:
                return self._end > offset
            return offset < self._opened_at or any(newest.get(t, 0) > offset for t in types)

        try:
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(something)
        except TimeoutError:
            pass

    async def _select(
        self, after: int, upto: int, limit: int, types: frozenset[str] | None
    ) -> list[Row]:
        wanted, parameters = "", [after, upto]
        if types is not None:
            wanted = f"AND type IN ({', '.join('?' * len(types))})"
            parameters += sorted(types)
        return await self._database.rows(
            f"SELECT {_COLUMNS}, payload FROM events WHERE offset > ? AND offset <= ?"
            f" AND payload IS NOT NULL {wanted} ORDER BY offset LIMIT ?",
            (*parameters, limit),
        )

    async def end(self) -> int:
        """See `EventLog.end`."""
        return self._end

    async def find(self, event: str) -> Envelope | None:
        """See `EventLog.find`."""
        row = await self._database.row(
            f"SELECT {_COLUMNS}, payload FROM events WHERE id = ?", (event,)
        )
        return _envelope(row) if row else None

    async def caused_by(self, event: str) -> list[Envelope]:
        """See `EventLog.caused_by`."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS}, payload FROM events WHERE cause = ? ORDER BY offset", (event,)
        )
        return [_envelope(row) for row in rows]

    # --- erasing and verifying -------------------------------------------------------------

    async def erase(self, events: Sequence[str]) -> int:
        """See `EventLog.erase`."""
        erased = await self._database.execute(
            "UPDATE events SET payload = NULL, salt = NULL WHERE payload IS NOT NULL"
            " AND id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(events)),),
        )
        await self._database.checkpoint()
        return erased

    async def verify(self) -> int:
        """See `EventLog.verify`."""
        last_hash, checked = b"", 0
        while checked < self._end:
            rows = await self._database.rows(
                f"SELECT {_COLUMNS}, payload, salt, payload_hash, hash FROM events"
                " WHERE offset > ? ORDER BY offset LIMIT 2000",
                (checked,),
            )
            if not rows:
                raise self._break(checked + 1)
            for row in rows:
                if row[0] != checked + 1 or not _holds(row, last_hash):
                    raise self._break(checked + 1)
                last_hash, checked = row[-1], row[0]
        return checked

    def _break(self, offset: int) -> CorruptError:
        return CorruptError(
            f"{self._database.path}: the chain of hashes breaks at offset {offset}; "
            "restore the log from a backup"
        )


@dataclass(frozen=True, slots=True)
class _Request:
    """What one caller appends, and where it waits for the offsets."""

    entries: Sequence["_Entry"]
    offsets: asyncio.Future[list[int]]

    def succeed(self, offsets: list[int]) -> None:
        if not self.offsets.done():
            self.offsets.set_result(offsets)

    def fail(self, error: Exception) -> None:
        if not self.offsets.done():
            self.offsets.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An envelope as it is stored, but for what depends on its place."""

    header: tuple[Any, ...]
    payload: str
    salt: bytes
    payload_hash: bytes

    @classmethod
    def of(cls, envelope: Envelope) -> "_Entry":
        header = (
            envelope.id,
            envelope.type,
            envelope.version,
            as_text(envelope.at),
            envelope.tenant,
            envelope.user,
            envelope.key,
            envelope.producer,
            envelope.cause,
            envelope.correlation,
            envelope.idempotency,
        )
        salt = secrets.token_bytes(_SALT_BYTES)
        try:
            payload = json.dumps(envelope.payload, ensure_ascii=False, separators=(",", ":"))
            return cls(header, payload, salt, _payload_hash(salt, payload))
        except (TypeError, ValueError) as error:
            raise InvalidError(
                f"payload of {envelope.type} {envelope.id} is not JSON: {error}"
            ) from error

    @property
    def idempotency(self) -> str:
        return self.header[-1]

    @property
    def columns(self) -> tuple[Any, ...]:
        return (*self.header, self.payload, self.salt, self.payload_hash)


def _payload_hash(salt: bytes, payload: str) -> bytes:
    return hashlib.sha256(salt + payload.encode()).digest()


def _chain(previous: bytes, offset: int, header: Sequence[Any], payload_hash: bytes) -> bytes:
    body = json.dumps((offset, *header), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(previous + body.encode() + payload_hash).digest()


def _holds(row: Row, last_hash: bytes) -> bool:
    payload, salt, payload_hash, chained = row[-4:]
    if payload is not None and _payload_hash(salt or b"", payload) != payload_hash:
        return False
    return _chain(last_hash, row[0], row[1:-4], payload_hash) == chained


def _envelope(row: Row) -> Envelope:
    """An envelope from its columns, which were validated when they were written."""
    fields = dict(zip(_FIELDS, row, strict=False))
    fields["at"] = datetime.fromisoformat(row[4])
    fields["payload"] = json.loads(row[-1]) if row[-1] is not None else {}
    return Envelope.model_construct(**fields)
