"""An arbiter's cursor, outbox and failures, in the same file as its state."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime

from arbiters.envelope import Envelope, as_text
from arbiters.records import DeadLetter
from soma_agents.storage.database import Database, Row
from soma_agents.storage.sqlite_files import Schema


class SqliteLedger:
    """Implements `arbiters.stores.Ledger`."""

    schema = Schema(
        "ledger",
        (
            """
            CREATE TABLE cursor (one INTEGER PRIMARY KEY CHECK (one = 1), offset INTEGER NOT NULL)
                STRICT;
            INSERT INTO cursor VALUES (1, 0);
            CREATE TABLE outbox (
                place INTEGER PRIMARY KEY AUTOINCREMENT,
                id TEXT NOT NULL UNIQUE,
                envelope TEXT NOT NULL
            ) STRICT;
            CREATE TABLE attempts (offset INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
            CREATE TABLE dead_letters (
                event TEXT PRIMARY KEY,
                envelope TEXT NOT NULL,
                attempts INTEGER NOT NULL,
                error TEXT NOT NULL,
                at TEXT NOT NULL
            ) STRICT;
            """,
        ),
    )

    def __init__(self, database: Database) -> None:
        self._database = database

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """See `Ledger.transaction`."""
        return self._database.transaction()

    async def cursor(self) -> int:
        """See `Ledger.cursor`."""
        row = await self._database.row("SELECT offset FROM cursor")
        return row[0] if row else 0

    async def advance(self, offset: int, said: Sequence[Envelope]) -> None:
        """See `Ledger.advance`."""
        await self._database.defer("UPDATE cursor SET offset = max(offset, ?)", [(offset,)])
        await self._database.defer("DELETE FROM attempts WHERE offset <= ?", [(offset,)])
        if said:
            await self._database.defer(
                "INSERT INTO outbox (id, envelope) VALUES (?, ?)",
                [(envelope.id, envelope.dump()) for envelope in said],
            )

    async def outbox(self) -> list[Envelope]:
        """See `Ledger.outbox`."""
        rows = await self._database.rows("SELECT envelope FROM outbox ORDER BY place")
        return [Envelope.load(text) for (text,) in rows]

    async def sent(self, envelopes: Sequence[Envelope]) -> None:
        """See `Ledger.sent`."""
        await self._database.execute_many(
            "DELETE FROM outbox WHERE id = ?", [(envelope.id,) for envelope in envelopes]
        )

    async def attempt(self, offset: int) -> int:
        """See `Ledger.attempt`. It outlives what a handler can do to the process: no fsync."""
        ((count,),) = await self._database.change_soon(
            "INSERT INTO attempts VALUES (?, 1)"
            " ON CONFLICT (offset) DO UPDATE SET count = count + 1 RETURNING count",
            (offset,),
        )
        return count - 1

    async def forgive(self, offset: int) -> None:
        """See `Ledger.forgive`."""
        await self._database.execute(
            "UPDATE attempts SET count = count - 1 WHERE offset = ? AND count > 0", (offset,)
        )

    async def bury(self, letter: DeadLetter) -> None:
        """See `Ledger.bury`."""
        await self._database.execute(
            "INSERT OR REPLACE INTO dead_letters VALUES (?, ?, ?, ?, ?)",
            (
                letter.envelope.id,
                letter.envelope.dump(),
                letter.attempts,
                letter.error,
                as_text(letter.at),
            ),
        )

    async def dead_letters(self) -> list[DeadLetter]:
        """See `Ledger.dead_letters`."""
        rows = await self._database.rows(
            "SELECT envelope, attempts, error, at FROM dead_letters ORDER BY rowid"
        )
        return [_letter(row) for row in rows]

    async def exhume(self, event: str) -> Envelope | None:
        """See `Ledger.exhume`."""
        rows = await self._database.change(
            "DELETE FROM dead_letters WHERE event = ? RETURNING envelope", (event,)
        )
        return Envelope.load(rows[0][0]) if rows else None


def _letter(row: Row) -> DeadLetter:
    envelope, attempts, error, at = row
    return DeadLetter(
        envelope=Envelope.load(envelope),
        attempts=attempts,
        error=error,
        at=datetime.fromisoformat(at),
    )
