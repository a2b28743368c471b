"""The coordinator's memory: messages counted, rounds run."""

from datetime import datetime

from arbiters.envelope import as_text
from arbiters.records import RoundState
from soma_agents.storage.database import Database, Row
from soma_agents.storage.sqlite_files import Schema

_ROUND = "id, step, started_at, upto, progress, verdict, because, finished_at"
_UPDATE = ", ".join(f"{name} = excluded.{name}" for name in _ROUND.split(", "))


class SqliteRoundStore:
    """Implements `arbiters.stores.RoundStore`."""

    schema = Schema(
        "rounds",
        (
            """
            CREATE TABLE counts (offset INTEGER PRIMARY KEY, messages INTEGER NOT NULL) STRICT;
            CREATE TABLE rounds (
                id TEXT PRIMARY KEY,
                step TEXT NOT NULL,
                started_at TEXT NOT NULL,
                upto INTEGER NOT NULL,
                progress REAL NOT NULL,
                verdict TEXT,
                because TEXT NOT NULL,
                finished_at TEXT
            ) STRICT;
            """,
        ),
    )

    def __init__(self, database: Database) -> None:
        self._database = database

    async def count(self, offset: int, messages: int) -> None:
        """See `RoundStore.count`. Counting an offset again replaces its count."""
        await self._database.execute(
            "INSERT OR REPLACE INTO counts VALUES (?, ?)", (offset, messages)
        )

    async def messages_since(self, offset: int) -> int:
        """See `RoundStore.messages_since`."""
        row = await self._database.row(
            "SELECT coalesce(sum(messages), 0) FROM counts WHERE offset > ?", (offset,)
        )
        return row[0] if row else 0

    async def save(self, state: RoundState) -> None:
        """See `RoundStore.save`."""
        await self._database.execute(
            f"INSERT INTO rounds ({_ROUND}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            f" ON CONFLICT (id) DO UPDATE SET {_UPDATE}",
            (
                state.id,
                state.step,
                as_text(state.started_at),
                state.upto,
                float(state.progress),
                state.verdict,
                state.because,
                as_text(state.finished_at) if state.finished_at else None,
            ),
        )

    async def current(self) -> RoundState | None:
        """See `RoundStore.current`."""
        row = await self._database.row(
            f"SELECT {_ROUND} FROM rounds WHERE step <> 'finished' ORDER BY rowid LIMIT 1"
        )
        return _round(row) if row else None

    async def latest(self) -> RoundState | None:
        """See `RoundStore.latest`."""
        newest = await self.rounds(limit=1)
        return newest[0] if newest else None

    async def rounds(self, *, limit: int = 50) -> list[RoundState]:
        """See `RoundStore.rounds`."""
        rows = await self._database.rows(
            f"SELECT {_ROUND} FROM rounds ORDER BY rowid DESC LIMIT ?", (limit,)
        )
        return [_round(row) for row in rows]


def _round(row: Row) -> RoundState:
    identity, step, started_at, upto, progress, verdict, because, finished_at = row
    return RoundState(
        id=identity,
        step=step,
        started_at=datetime.fromisoformat(started_at),
        upto=upto,
        progress=progress,
        verdict=verdict,
        because=because,
        finished_at=datetime.fromisoformat(finished_at) if finished_at else None,
    )
