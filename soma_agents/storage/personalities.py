"""The personality towards each user, revision by revision."""

import json
from collections.abc import Mapping
from datetime import datetime

from arbiters.envelope import as_text
from arbiters.errors import ConflictError
from arbiters.records import NOTES_KEPT, PersonalityRevision
from soma_agents.storage.database import Database
from soma_agents.storage.sqlite_files import Schema


class SqlitePersonalityStore:
    """Implements `arbiters.stores.PersonalityStore`."""

    schema = Schema(
        "personalities",
        (
            """
            CREATE TABLE personality (
                tenant TEXT NOT NULL,
                user TEXT NOT NULL,
                revision INTEGER NOT NULL,
                dimensions TEXT NOT NULL,
                messages INTEGER NOT NULL,
                because TEXT NOT NULL,
                at TEXT NOT NULL,
                PRIMARY KEY (tenant, user, revision)
            ) STRICT;
            CREATE TABLE notes (
                place INTEGER PRIMARY KEY AUTOINCREMENT,
                tenant TEXT NOT NULL,
                user TEXT NOT NULL,
                name TEXT NOT NULL,
                noted TEXT NOT NULL,
                UNIQUE (tenant, user, name)
            ) STRICT;
            CREATE INDEX notes_by_place ON notes (tenant, user, place);
            """,
        ),
    )

    def __init__(self, database: Database) -> None:
        self._database = database

    async def current(self, tenant: str, user: str) -> PersonalityRevision | None:
        """See `PersonalityStore.current`."""
        newest = await self.history(tenant, user, limit=1)
        return newest[0] if newest else None

    async def add(self, tenant: str, user: str, revision: PersonalityRevision) -> None:
        """Append a revision.

        Raises:
            ConflictError: the user has a revision of this number already.
        """
        added = await self._database.execute(
            "INSERT OR IGNORE INTO personality VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                tenant,
                user,
                revision.revision,
                json.dumps(dict(revision.dimensions)),
                revision.messages,
                revision.because,
                as_text(revision.at),
            ),
        )
        if not added:
            raise ConflictError(
                f"personality of {user!r} has a revision {revision.revision} already; read it again"
            )

    async def history(
        self, tenant: str, user: str, *, limit: int = 50
    ) -> list[PersonalityRevision]:
        """See `PersonalityStore.history`."""
        rows = await self._database.rows(
            "SELECT revision, dimensions, messages, because, at FROM personality"
            " WHERE tenant = ? AND user = ? ORDER BY revision DESC LIMIT ?",
            (tenant, user, limit),
        )
        return [
            PersonalityRevision(
                revision, json.loads(dimensions), messages, because, datetime.fromisoformat(at)
            )
            for revision, dimensions, messages, because, at in rows
        ]

    async def note(self, tenant: str, user: str, name: str, values: Mapping[str, float]) -> None:
        """See `PersonalityStore.note`."""
        async with self._database.transaction():
            await self._database.execute(
                "INSERT OR REPLACE INTO notes (tenant, user, name, noted) VALUES (?, ?, ?, ?)",
                (tenant, user, name, json.dumps(dict(values))),
            )
            await self._database.execute(
                "DELETE FROM notes WHERE tenant = ?1 AND user = ?2 AND place <= (SELECT place"
                " FROM notes WHERE tenant = ?1 AND user = ?2 ORDER BY place DESC LIMIT 1 OFFSET ?3)",
                (tenant, user, NOTES_KEPT),
            )

    async def noted(self, tenant: str, user: str, name: str) -> Mapping[str, float] | None:
        """See `PersonalityStore.noted`."""
        row = await self._database.row(
            "SELECT noted FROM notes WHERE tenant = ? AND user = ? AND name = ?",
            (tenant, user, name),
        )
        return json.loads(row[0]) if row else None
