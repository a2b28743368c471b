"""What people said about themselves, with where and when."""

from datetime import datetime

from arbiters.envelope import as_text
from arbiters.records import StoredFact
from soma_agents.storage.database import Database, Row
from soma_agents.storage.sqlite_files import Schema

_FACT = "id, subject, value, kind, quote, message, at"


class SqliteProfileStore:
    """Implements `arbiters.stores.ProfileStore`."""

    schema = Schema(
        "profiles",
        (
            """
            CREATE TABLE facts (
                place INTEGER PRIMARY KEY,
                tenant TEXT NOT NULL,
                user TEXT NOT NULL,
                id TEXT NOT NULL,
                subject TEXT NOT NULL,
                value TEXT NOT NULL,
                kind TEXT NOT NULL,
                quote TEXT NOT NULL,
                message TEXT NOT NULL,
                at TEXT NOT NULL,
                UNIQUE (tenant, user, id)
            ) STRICT;
            CREATE INDEX facts_by_subject ON facts (tenant, user, subject, place);
            """,
        ),
    )

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, tenant: str, user: str, fact: StoredFact) -> None:
        """See `ProfileStore.put`. A fact whose id is known changes nothing."""
        at = as_text(fact.at)
        await self._database.execute(
            f"INSERT OR IGNORE INTO facts (tenant, user, {_FACT})"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                tenant,
                user,
                fact.id,
                fact.subject,
                fact.value,
                fact.kind,
                fact.quote,
                fact.message,
                at,
            ),
        )

    async def forget(self, tenant: str, user: str, subject: str) -> bool:
        """See `ProfileStore.forget`."""
        gone = await self._database.execute(
            "DELETE FROM facts WHERE tenant = ? AND user = ? AND subject = ?",
            (tenant, user, subject),
        )
        return gone > 0

    async def facts(self, tenant: str, user: str) -> list[StoredFact]:
        """See `ProfileStore.facts`."""
        rows = await self._database.rows(
            f"SELECT {_FACT} FROM facts WHERE place IN (SELECT max(place) FROM facts"
            " WHERE tenant = ? AND user = ? GROUP BY subject) ORDER BY subject",
            (tenant, user),
        )
        return [_fact(row) for row in rows]

    async def history(self, tenant: str, user: str, subject: str) -> list[StoredFact]:
        """See `ProfileStore.history`."""
        rows = await self._database.rows(
            f"SELECT {_FACT} FROM facts WHERE tenant = ? AND user = ? AND subject = ?"
            " ORDER BY place",
            (tenant, user, subject),
        )
        return [_fact(row) for row in rows]


def _fact(row: Row) -> StoredFact:
    return StoredFact(*row[:-1], at=datetime.fromisoformat(row[-1]))
