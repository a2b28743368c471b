"""The event log in one SQLite file: appended in groups, chained by hashes, never rewritten."""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from arbiters.errors import InvalidError
from arbiters.events import Envelope
from soma_agents.storage.chain import ALL_COLUMNS, ENVELOPE_COLUMNS, Entry, envelope_of, placed
from soma_agents.storage.chained_log import ChainedLog
from soma_agents.storage.database import Database, Row, Schema

_TAIL_ROWS = 8000
_TAIL_CHARACTERS = 8_000_000


class SqliteEventLog(ChainedLog):
    """Implements `arbiters.ports.EventLog`. One process at a time has the file."""

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
        super().__init__(str(database.path))
        self._database = database
        self._end = end
        self._hash = last_hash
        self._newest: dict[str, int] = {}
        self._opened_at = end
        self._tail: list[Row] = []
        """The newest rows without gaps, as `ENVELOPE_COLUMNS`; none of them is erased."""
        self._tail_size = 0

    @classmethod
    async def open(cls, path: Path) -> "SqliteEventLog":
        """Open or create the log; raises what `Database.open` raises."""
        database = await Database.open(path, cls.schema)
        last = await database.row("SELECT offset, hash FROM events ORDER BY offset DESC LIMIT 1")
        end, last_hash = last or (0, b"")
        return cls(database, end, last_hash)

    async def _shut(self) -> None:
        await self._database.close()

    # --- appending -------------------------------------------------------------------------

    async def _commit(self, entries: Sequence[Entry]) -> dict[str, int]:
        try:
            return await self._store_new(entries)
        except sqlite3.IntegrityError as error:
            ids = ", ".join(repr(entry.id) for entry in entries[:3])
            raise InvalidError(
                f"{self.place} cannot store {len(entries)} events ({ids} …): {error}; "
                "give each an id of its own"
            ) from error

    async def _store_new(self, entries: Sequence[Entry]) -> dict[str, int]:
        async with self._database.transaction():
            offsets = await self._known(entries)
            end, last_hash, rows = placed(entries, offsets, self._end, self._hash)
            if rows:
                marks = ", ".join("?" * len(rows[0]))
                await self._database.execute_many(f"INSERT INTO events VALUES ({marks})", rows)
        self._end, self._hash = end, last_hash
        self._newest |= {row[2]: row[0] for row in rows}
        self._remember([row[:-3] for row in rows])
        return offsets

    async def _known(self, entries: Sequence[Entry]) -> dict[str, int]:
        keys = json.dumps([entry.idempotency for entry in entries])
        found = await self._database.rows(
            "SELECT idempotency, offset FROM events"
            " WHERE idempotency IN (SELECT value FROM json_each(?))",
            (keys,),
        )
        return dict(found)

    # --- reading ---------------------------------------------------------------------------

    async def end(self) -> int:
        """See `EventLog.end`."""
        return self._end

    async def _may_hold(self, after: int, upto: int, types: frozenset[str]) -> bool:
        # Of those from before the file was opened nobody knows the types without a look.
        if after < self._opened_at:
            return await super()._may_hold(after, upto, types)
        return any(self._newest.get(type_, 0) > after for type_ in types)

    async def _select(
        self, after: int, upto: int, limit: int, types: frozenset[str] | None
    ) -> list[Row]:
        if self._tail and self._tail[0][0] <= after + 1:
            return self._recent(after, upto, limit, types)
        wanted, parameters = "", [after, upto]
        if types is not None:
            wanted = f"AND type IN ({', '.join('?' * len(types))})"
            parameters += sorted(types)
        return await self._database.rows(
            f"SELECT {ENVELOPE_COLUMNS} FROM events WHERE offset > ? AND offset <= ?"
            f" AND payload IS NOT NULL {wanted} ORDER BY offset LIMIT ?",
            (*parameters, limit),
        )

    def _recent(self, after: int, upto: int, limit: int, types: frozenset[str] | None) -> list[Row]:
        """`_select` from memory: those who keep up need not ask the file."""
        first = self._tail[0][0]
        rows = self._tail[after + 1 - first : upto + 1 - first]
        if types is not None:
            rows = [row for row in rows if row[2] in types]
        return rows[:limit]

    def _remember(self, rows: list[Row]) -> None:
        """Keep the newest rows in memory, of old ones half when they get too many."""
        self._tail += rows
        self._tail_size += sum(len(row[-1]) for row in rows)
        if len(self._tail) > _TAIL_ROWS or self._tail_size > _TAIL_CHARACTERS:
            self._tail = self._tail[len(self._tail) // 2 + 1 :]
            self._tail_size = sum(len(row[-1]) for row in self._tail)

    async def _rows(self, after: int) -> list[Row]:
        return await self._database.rows(
            f"SELECT {ALL_COLUMNS} FROM events WHERE offset > ? ORDER BY offset LIMIT 2000",
            (after,),
        )

    async def find(self, event: str) -> Envelope | None:
        """See `EventLog.find`."""
        row = await self._database.row(
            f"SELECT {ENVELOPE_COLUMNS} FROM events WHERE id = ?", (event,)
        )
        return envelope_of(row) if row else None

    async def caused_by(self, event: str) -> list[Envelope]:
        """See `EventLog.caused_by`."""
        rows = await self._database.rows(
            f"SELECT {ENVELOPE_COLUMNS} FROM events WHERE cause = ? ORDER BY offset", (event,)
        )
        return [envelope_of(row) for row in rows]

    async def copy(self, target: Path) -> None:
        """See `ChainedLog.copy` and `Database.copy`."""
        await self._database.copy(target)

    # --- erasing ---------------------------------------------------------------------------

    async def erase(self, events: Sequence[str]) -> int:
        """See `EventLog.erase`."""
        self._tail = []
        erased = await self._database.execute(
            "UPDATE events SET payload = NULL, salt = NULL WHERE payload IS NOT NULL"
            " AND id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(events)),),
        )
        await self._database.checkpoint()
        return erased
