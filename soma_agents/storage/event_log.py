"""The event log in one SQLite file: appended in groups, chained by hashes, never rewritten.

Old content may have moved into archived segments beside the file; readers do not notice.
"""

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import structlog

from arbiters.envelope import Envelope
from arbiters.errors import InvalidError, SomaError
from policies.retention import Retention, Segment, segment_due
from soma_agents.storage.archive import Archive
from soma_agents.storage.chain import ALL_COLUMNS, Entry, placed
from soma_agents.storage.chained_log import ChainedLog
from soma_agents.storage.database import Database, Row
from soma_agents.storage.sqlite_files import Schema

_TAIL_ROWS = 20_000
_TAIL_CHARACTERS = 16_000_000
ARCHIVED_COLUMNS = f"{ALL_COLUMNS}, segment"
"""What `Archive.restored` reads."""

_KEEP_ALL = Retention()

logger = structlog.get_logger(__name__)


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
            """
            ALTER TABLE events ADD COLUMN segment INTEGER;
            CREATE TABLE archived (upto INTEGER NOT NULL);
            INSERT INTO archived VALUES (0);
            """,
        ),
    )

    def __init__(
        self, database: Database, end: int, last_hash: bytes, archived: int, rules: Retention
    ) -> None:
        super().__init__(str(database.path))
        self._database = database
        self._end = end
        self._hash = last_hash
        self._archive = Archive(archive_of(database.path))
        self._archived = archived
        self._retention = rules
        self._archiver: asyncio.Task[None] | None = None
        self._moving = asyncio.Lock()
        """Whoever moves or erases content in the archive."""
        self._newest: dict[str, int] = {}
        self._opened_at = end
        self._tail: list[Row] = []
        """The newest rows without gaps, as `ENVELOPE_COLUMNS`; none of them is erased."""
        self._tail_size = 0

    @classmethod
    async def open(cls, path: Path, retention: Retention = _KEEP_ALL) -> "SqliteEventLog":
        """Open or create the log; raises what `Database.open` raises."""
        return await cls.over(await Database.open(path, cls.schema), retention)

    @classmethod
    async def over(cls, database: Database, retention: Retention) -> "SqliteEventLog":
        """The log in a database that is open and has its tables."""
        last = await database.row("SELECT offset, hash FROM events ORDER BY offset DESC LIMIT 1")
        end, last_hash = last or (0, b"")
        ((archived,),) = await database.rows("SELECT upto FROM archived")
        return cls(database, end, last_hash, archived, retention)

    async def _shut(self) -> None:
        if self._archiver is not None:
            await self._archiver
        await self._database.close()

    # --- appending -------------------------------------------------------------------------

    async def _commit(self, entries: Sequence[Entry]) -> dict[str, int]:
        try:
            return await self._store_new(entries, {})
        except sqlite3.IntegrityError:  # seldom: so whether one is there is asked only now
            known = await self._known(entries)
        try:
            return await self._store_new(entries, known)
        except sqlite3.IntegrityError as error:
            ids = ", ".join(repr(entry.id) for entry in entries[:3])
            raise InvalidError(
                f"{self.place} cannot store {len(entries)} events ({ids} …): {error}; "
                "give each an id of its own"
            ) from error

    async def _store_new(self, entries: Sequence[Entry], offsets: dict[str, int]) -> dict[str, int]:
        async with self._database.transaction():
            end, last_hash, rows = placed(entries, offsets, self._end, self._hash)
            if rows:
                marks = ", ".join("?" * len(rows[0]))
                await self._database.defer(
                    f"INSERT INTO events ({ALL_COLUMNS}) VALUES ({marks})", rows
                )
        self._end, self._hash = end, last_hash
        self._newest |= {row[2]: row[0] for row in rows}
        self._remember([row[:-3] for row in rows])
        self._tidy_up()
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
        found = await self._stored(
            "offset > ? AND offset <= ? AND (payload IS NOT NULL OR segment IS NOT NULL)"
            f" {wanted} ORDER BY offset LIMIT ?",
            (*parameters, limit),
        )
        rows = [row[:-3] for row in found if row[-4] is not None]
        if len(rows) < len(found) == limit:  # some were erased from the archive just now
            rows += await self._select(found[-1][0], upto, limit - len(rows), types)
        return rows

    def _recent(self, after: int, upto: int, limit: int, types: frozenset[str] | None) -> list[Row]:
        """`_select` from memory: those who keep up need not ask the file."""
        first = self._tail[0][0]
        rows = self._tail[after + 1 - first : upto + 1 - first]
        return list(islice((row for row in rows if types is None or row[2] in types), limit))

    def _remember(self, rows: list[Row]) -> None:
        """Keep the newest rows in memory, of old ones half when they get too many."""
        self._tail += rows
        self._tail_size += sum(len(row[-1]) for row in rows)
        if len(self._tail) > _TAIL_ROWS or self._tail_size > _TAIL_CHARACTERS:
            self._tail = self._tail[len(self._tail) // 2 + 1 :]
            self._tail_size = sum(len(row[-1]) for row in self._tail)

    async def _rows(self, after: int) -> list[Row]:
        return await self._stored("offset > ? ORDER BY offset LIMIT 2000", (after,))

    async def find(self, event: str) -> Envelope | None:
        """See `EventLog.find`."""
        rows = await self._stored("id = ?", (event,))
        return Envelope._make(rows[0][:-3]) if rows else None

    async def caused_by(self, event: str) -> list[Envelope]:
        """See `EventLog.caused_by`."""
        rows = await self._stored("cause = ? ORDER BY offset", (event,))
        return [Envelope._make(row[:-3]) for row in rows]

    async def _stored(self, where: str, parameters: Sequence[object]) -> list[Row]:
        """`ALL_COLUMNS` of some rows, with content from wherever it is."""
        rows = await self._database.rows(
            f"SELECT {ARCHIVED_COLUMNS} FROM events WHERE {where}", parameters
        )
        if any(row[-1] is not None for row in rows):
            return await asyncio.to_thread(self._archive.restored, rows)
        return [row[:-1] for row in rows]

    async def copy(self, target: Path) -> None:
        """See `ChainedLog.copy` and `Database.copy`; the archive's files are copied as files."""
        await self._database.copy(target)

    # --- erasing ---------------------------------------------------------------------------

    async def erase(self, events: Sequence[str]) -> int:
        """See `EventLog.erase`."""
        self._tail = []
        chosen = "id IN (SELECT value FROM json_each(?))"
        ids = (json.dumps(list(events)),)
        async with self._moving:
            archived = await self._database.rows(
                f"SELECT segment, offset FROM events WHERE segment IS NOT NULL AND {chosen}", ids
            )
            # The files first: what the database calls erased is nowhere any more.
            for segment in {segment for segment, _ in archived}:
                offsets = [offset for place, offset in archived if place == segment]
                await asyncio.to_thread(self._archive.erase, segment, offsets)
            erased = await self._database.execute(
                "UPDATE events SET payload = NULL, salt = NULL, segment = NULL"
                f" WHERE (payload IS NOT NULL OR segment IS NOT NULL) AND {chosen}",
                ids,
            )
        await self._database.checkpoint()
        return erased

    # --- archiving -------------------------------------------------------------------------

    def _tidy_up(self) -> None:
        """Begin to move what is old, unless there is nothing or that is under way."""
        if self._due() and (self._archiver is None or self._archiver.done()):
            self._archiver = asyncio.create_task(self._move_old())

    def _due(self) -> Segment | None:
        return segment_due(end=self._end, archived=self._archived, rules=self._retention)

    async def _move_old(self) -> None:
        """Move segment after segment until none is due."""
        try:
            while (segment := self._due()) and not self._closed:
                async with self._moving:
                    await self._move(segment)
        except (SomaError, OSError) as error:
            # The log works without; it is tried again after the next commit.
            logger.warning("not archived", error=str(error))

    async def _move(self, segment: Segment) -> None:
        """Make the content durable in its file, then take it out of the database."""
        between = "offset BETWEEN ? AND ? AND payload IS NOT NULL"
        bounds = (segment.first, segment.last)
        rows = await self._database.rows(
            f"SELECT offset, payload, salt FROM events WHERE {between} ORDER BY offset", bounds
        )
        contents = [(offset, (payload, salt)) for offset, payload, salt in rows]
        await asyncio.to_thread(self._archive.write, segment.first, contents)
        async with self._database.transaction():
            await self._database.execute(
                f"UPDATE events SET payload = NULL, salt = NULL, segment = ? WHERE {between}",
                (segment.first, *bounds),
            )
            await self._database.execute("UPDATE archived SET upto = ?", (segment.last,))
        self._archived = segment.last


def archive_of(log_file: Path) -> Path:
    """Where the archived segments of a log are."""
    return log_file.parent / "archive"
