"""The event log in a PostgreSQL database, for clusters that outgrow one machine."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from arbiters.envelope import Envelope
from arbiters.errors import InvalidError
from soma_agents.storage.chain import ALL_COLUMNS, ENVELOPE_COLUMNS, Entry, placed
from soma_agents.storage.chained_log import ChainedLog
from soma_agents.storage.database import Row
from soma_agents.storage.postgres import Connection, Server
from soma_agents.storage.sqlite_files import Schema, refuse_newer

_CHANNEL = "soma_events"
_POLL_S = 1.0
"""Seconds after which a waiting reader looks for itself, whatever it was told."""

_TYPES = (
    *("bigint", "text", "text", "integer"),
    *("text",) * 8,
    *("text", "bytea", "bytea", "bytea"),
)
# One round trip, however many rows.
_STORE = f"""
    WITH stored AS (
        INSERT INTO events ({ALL_COLUMNS}) SELECT * FROM
        unnest({", ".join(f"${n}::{type_}[]" for n, type_ in enumerate(_TYPES, 3))})
    )
    UPDATE events_head SET "offset" = $1, hash = $2
"""


class PostgresEventLog(ChainedLog):
    """Implements `arbiters.ports.EventLog`. Any number of processes append and read at once.

    Whoever appends holds the one row of `events_head` until its commit, so that offsets have no
    gaps and become visible in their order. While the server is away every method raises
    UnavailableError; once it is back they work again. An append that ended so may have been
    stored: repeated, it is known by its idempotency keys.
    """

    schema = Schema(
        "event_log",
        (
            # Collated by bytes: an index ordered by the system's language breaks at its upgrades.
            """
            CREATE TABLE events (
                "offset" bigint PRIMARY KEY,
                id text COLLATE "C" NOT NULL UNIQUE,
                type text NOT NULL,
                version integer NOT NULL,
                at text NOT NULL,
                tenant text NOT NULL,
                "user" text NOT NULL,
                key text NOT NULL,
                producer text NOT NULL,
                cause text COLLATE "C",
                correlation text NOT NULL,
                idempotency text COLLATE "C" NOT NULL UNIQUE,
                payload text,
                salt bytea,
                payload_hash bytea NOT NULL,
                hash bytea NOT NULL
            );
            CREATE INDEX events_by_cause ON events (cause) WHERE cause IS NOT NULL;
            CREATE TABLE events_head (
                single boolean PRIMARY KEY CHECK (single),
                "offset" bigint NOT NULL,
                hash bytea NOT NULL
            );
            INSERT INTO events_head VALUES (true, 0, '');
            """,
        ),
    )

    def __init__(self, server: Server) -> None:
        super().__init__(server.place)
        self._server = server
        self._ear: Connection = None
        self._opening = asyncio.Lock()

    @classmethod
    async def open(cls, url: str) -> "PostgresEventLog":
        """Connect and make or upgrade the tables; raises what `Server.open` raises."""
        log = cls(await Server.open(url, cls.schema))
        try:
            await log._prick_up()
        except BaseException:
            await log.close()
            raise
        return log

    async def _shut(self) -> None:
        if self._ear is not None:
            self._ear.terminate()
        await self._server.close()

    # --- appending -------------------------------------------------------------------------

    async def _commit(self, entries: Sequence[Entry]) -> dict[str, int]:
        keys = [entry.idempotency for entry in entries]
        async with self._server.transaction() as connection:
            head = await connection.fetchrow('SELECT "offset", hash FROM events_head FOR UPDATE')
            # A statement of its own, begun under the lock: it sees all that was stored before.
            known = await connection.fetch(
                'SELECT idempotency, "offset" FROM events WHERE idempotency = ANY($1)', keys
            )
            offsets: dict[str, int] = dict(known)
            end, last_hash, rows = placed(entries, offsets, *head)
            if rows:
                await connection.execute(_STORE, end, last_hash, *zip(*rows, strict=True))
                await connection.execute(f"NOTIFY {_CHANNEL}")
        return offsets

    # --- reading ---------------------------------------------------------------------------

    async def end(self) -> int:
        """See `EventLog.end`."""
        return await self._server.value('SELECT "offset" FROM events_head')

    async def _listen(self, told: int) -> None:
        if await self._prick_up():
            return  # who was deaf until now has to look
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await super()._listen(told)

    async def _prick_up(self) -> bool:
        """Listen for what others append; True when we did not before."""
        async with self._opening:
            if self._ear is not None and not self._ear.is_closed():
                return False
            self._ear = await self._server.listener(_CHANNEL, self._heard)
            return True

    async def _heard(self, *_: Any) -> None:
        await self._announce()

    async def _select(
        self, after: int, upto: int, limit: int, types: frozenset[str] | None
    ) -> list[Row]:
        return await self._server.rows(
            f'SELECT {ENVELOPE_COLUMNS} FROM events WHERE "offset" > $1 AND "offset" <= $2'
            " AND payload IS NOT NULL AND ($3::text[] IS NULL OR type = ANY($3))"
            ' ORDER BY "offset" LIMIT $4',
            *(after, upto, None if types is None else sorted(types), limit),
        )

    async def _rows(self, after: int) -> list[Row]:
        return await self._server.rows(
            f'SELECT {ALL_COLUMNS} FROM events WHERE "offset" > $1 ORDER BY "offset" LIMIT 2000',
            after,
        )

    async def find(self, event: str) -> Envelope | None:
        """See `EventLog.find`."""
        rows = await self._server.rows(
            f"SELECT {ENVELOPE_COLUMNS} FROM events WHERE id = $1", event
        )
        return Envelope._make(rows[0]) if rows else None

    async def caused_by(self, event: str) -> list[Envelope]:
        """See `EventLog.caused_by`."""
        rows = await self._server.rows(
            f'SELECT {ENVELOPE_COLUMNS} FROM events WHERE cause = $1 ORDER BY "offset"', event
        )
        return [Envelope._make(row) for row in rows]

    async def copy(self, target: Path) -> None:
        """See `ChainedLog.copy`."""
        raise InvalidError(f"{self.place} is not copied to {target}; back it up with pg_dump")

    # --- erasing ---------------------------------------------------------------------------

    async def erase(self, events: Sequence[str]) -> int:
        """See `EventLog.erase`.

        No query finds the payloads any more. Their bytes go when the server reuses the pages and
        drops the segments of its write-ahead log; its backups are the administrator's.
        """
        erased = await self._server.rows(
            "UPDATE events SET payload = NULL, salt = NULL"
            " WHERE payload IS NOT NULL AND id = ANY($1) RETURNING 1",
            list(events),
        )
        # Dead rows still hold the text. Not in a transaction; the indexes can wait.
        async with self._server.connection() as connection:
            await connection.execute("VACUUM (INDEX_CLEANUP OFF) events")
        return len(erased)


async def look(url: str) -> str:
    """What stands behind the setting `log.url`, in words; changes nothing.

    Raises:
        SomaError: why no log can be kept there.
    """
    server = await Server.connect(url)
    try:
        async with server.connection() as connection:
            found = await server.versions(connection)
            refuse_newer(found, (PostgresEventLog.schema,), server.place)
        release = await server.value("SHOW server_version")
        events = await server.value('SELECT "offset" FROM events_head') if found else 0
    finally:
        await server.close()
    return f"PostgreSQL {release} at {server.place}, {events} events"
