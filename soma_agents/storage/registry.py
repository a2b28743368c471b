"""Which models there are and which one is in service."""

import json
from dataclasses import replace
from datetime import datetime

from arbiters.envelope import as_text
from arbiters.errors import ConflictError, InvalidError, NotFoundError
from arbiters.records import ModelVersion, Pointer
from soma_agents.storage.database import Database, Row
from soma_agents.storage.sqlite_files import Schema

STAGES = ("candidate", "retired", "rejected", "held")
"""What a version can be besides champion, which follows the pointer alone."""

_MODEL = (
    "id, number, base, path, stage, dataset, round, hyperparameters, code_version, registered_at"
)


class SqliteRegistry:
    """Implements `arbiters.stores.Registry`. Version N is called soma-vN; 0 is the base."""

    schema = Schema(
        "registry",
        (
            """
            CREATE TABLE models (
                id TEXT PRIMARY KEY,
                number INTEGER NOT NULL UNIQUE,
                base TEXT NOT NULL,
                path TEXT NOT NULL,
                stage TEXT NOT NULL,
                dataset TEXT NOT NULL,
                round TEXT NOT NULL,
                hyperparameters TEXT NOT NULL,
                code_version TEXT NOT NULL,
                registered_at TEXT NOT NULL
            ) STRICT;
            CREATE TABLE numbers (last INTEGER NOT NULL) STRICT;
            INSERT INTO numbers VALUES (0);
            CREATE TABLE pointer (
                one INTEGER PRIMARY KEY CHECK (one = 1),
                champion TEXT NOT NULL REFERENCES models (id),
                previous TEXT REFERENCES models (id),
                since TEXT NOT NULL,
                watch_until TEXT
            ) STRICT;
            """,
            """
            CREATE TABLE specialists (
                name TEXT PRIMARY KEY,
                model TEXT NOT NULL,
                dataset TEXT NOT NULL,
                hyperparameters TEXT NOT NULL,
                registered_at TEXT NOT NULL,
                retired INTEGER NOT NULL DEFAULT 0
            ) STRICT;
            """,
        ),
    )

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- versions --------------------------------------------------------------------------

    async def register(self, version: ModelVersion) -> ModelVersion:
        """See `Registry.register`. The name and the stage it comes with do not count."""
        async with self._database.transaction():
            known = await self.model(version.id)
            if known is not None:
                return known
            rows = await self._database.rows("UPDATE numbers SET last = last + 1 RETURNING last")
            number = rows[0][0]
            registered = replace(version, name=f"soma-v{number}", stage="candidate")
            await self._insert(registered, number)
        return registered

    async def _insert(self, version: ModelVersion, number: int) -> None:
        await self._database.execute(
            f"INSERT INTO models ({_MODEL}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                version.id,
                number,
                version.base,
                version.path,
                version.stage,
                version.dataset,
                version.round,
                json.dumps(dict(version.hyperparameters)),
                version.code_version,
                as_text(version.registered_at),
            ),
        )

    async def model(self, model: str) -> ModelVersion | None:
        """See `Registry.model`."""
        row = await self._database.row(
            f"SELECT {_MODEL} FROM models WHERE id = ?1 OR 'soma-v' || number = ?1", (model,)
        )
        return _model(row) if row else None

    async def models(self) -> list[ModelVersion]:
        """See `Registry.models`."""
        rows = await self._database.rows(f"SELECT {_MODEL} FROM models ORDER BY number DESC")
        return [_model(row) for row in rows]

    async def set_stage(self, model: str, stage: str) -> None:
        """Move a version to another stage.

        Raises:
            NotFoundError: no such model.
            InvalidError: no such stage.
            ConflictError: it is the champion, whose stage follows the pointer.
        """
        if stage not in STAGES:
            raise InvalidError(f"stage {stage!r} is not one of {', '.join(STAGES)}")
        async with self._database.transaction():
            found = await self.model(model)
            if found is None:
                raise NotFoundError(f"no model {model!r} is registered")
            if found.stage == "champion":
                raise ConflictError(f"{found.name} is the champion; swap the pointer first")
            await self._stage(found.id, stage)

    async def _stage(self, identity: str, stage: str) -> None:
        await self._database.execute("UPDATE models SET stage = ? WHERE id = ?", (stage, identity))

    # --- specialists -----------------------------------------------------------------------

    async def add_specialist(self, version: ModelVersion) -> None:
        """See `Registry.add_specialist`."""
        async with self._database.transaction():
            known = await self._database.row(
                "SELECT model FROM specialists WHERE name = ?", (version.name,)
            )
            if known is not None and known[0] != version.id:
                raise ConflictError(
                    f"the name {version.name!r} belongs to {known[0]}; choose another"
                )
            await self._database.execute(
                "INSERT INTO specialists (name, model, dataset, hyperparameters, registered_at)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET retired = 0",
                (
                    version.name,
                    version.id,
                    version.dataset,
                    json.dumps(dict(version.hyperparameters)),
                    as_text(version.registered_at),
                ),
            )

    async def retire_specialist(self, name: str) -> None:
        """See `Registry.retire_specialist`."""
        async with self._database.transaction():
            changed = await self._database.change(
                "UPDATE specialists SET retired = 1 WHERE name = ? AND NOT retired RETURNING name",
                (name,),
            )
            if not changed:
                raise NotFoundError(f"no specialist is called {name!r}; see 'soma models'")

    async def specialists(self) -> list[ModelVersion]:
        """See `Registry.specialists`."""
        rows = await self._database.rows(
            "SELECT name, model, dataset, hyperparameters, registered_at FROM specialists"
            " WHERE NOT retired ORDER BY name"
        )
        return [_specialist(row) for row in rows]

    # --- the pointer -----------------------------------------------------------------------

    async def pointer(self) -> Pointer:
        """See `Registry.pointer`."""
        row = await self._database.row("SELECT champion, previous, since, watch_until FROM pointer")
        if row is None:
            raise NotFoundError("no model is in service; install the base model first")
        champion, previous, since, watch_until = row
        return Pointer(
            champion=champion,
            previous=previous,
            since=datetime.fromisoformat(since),
            watch_until=datetime.fromisoformat(watch_until) if watch_until else None,
        )

    async def install(self, version: ModelVersion, *, at: datetime) -> None:
        """See `Registry.install`."""
        async with self._database.transaction():
            if await self._database.row("SELECT 1 FROM pointer"):
                return
            await self._insert(version, 0)
            await self._stage(version.id, "champion")
            await self._database.execute(
                "INSERT INTO pointer VALUES (1, ?, NULL, ?, NULL)", (version.id, as_text(at))
            )

    async def swap(
        self, *, expected: str, champion: str, at: datetime, watch_until: datetime | None = None
    ) -> Pointer:
        """See `Registry.swap`. Ids, not names. To the champion itself nothing changes."""
        async with self._database.transaction():
            pointer = await self.pointer()
            if not await self._database.row("SELECT 1 FROM models WHERE id = ?", (champion,)):
                raise NotFoundError(f"no model {champion!r} is registered")
            if pointer.champion != expected:
                raise ConflictError(
                    f"the champion is {pointer.champion!r}, not {expected!r}; look again"
                )
            if champion == expected:
                return pointer
            await self._stage(expected, "retired")
            await self._stage(champion, "champion")
            await self._database.execute(
                "UPDATE pointer SET champion = ?, previous = ?, since = ?, watch_until = ?",
                (champion, expected, as_text(at), as_text(watch_until) if watch_until else None),
            )
        return await self.pointer()


def _specialist(row: Row) -> ModelVersion:
    name, model, dataset, hyperparameters, at = row
    return ModelVersion(
        id=model,
        name=name,
        base=model,
        path="",
        stage="specialist",
        dataset=dataset,
        round="",
        hyperparameters=json.loads(hyperparameters),
        code_version="",
        registered_at=datetime.fromisoformat(at),
    )


def _model(row: Row) -> ModelVersion:
    identity, number, base, path, stage, dataset, round_, hyperparameters, code, at = row
    return ModelVersion(
        id=identity,
        name=f"soma-v{number}",
        base=base,
        path=path,
        stage=stage,
        dataset=dataset,
        round=round_,
        hyperparameters=json.loads(hyperparameters),
        code_version=code,
        registered_at=datetime.fromisoformat(at),
    )
