"""What is being compared, on which terms, and what came of it."""

import json
from datetime import datetime

from arbiters.envelope import as_text
from arbiters.records import ExperimentState
from soma_agents.storage.database import Database, Row
from soma_agents.storage.sqlite_files import Schema

_EXPERIMENT = (
    "id, round, champion, candidate, ordinal, rules, phase, started_at, canary, offline, receipt"
)
_UPDATE = ", ".join(f"{name} = excluded.{name}" for name in _EXPERIMENT.split(", "))


class SqliteExperimentStore:
    """Implements `arbiters.stores.ExperimentStore`."""

    schema = Schema(
        "experiments",
        (
            """
            CREATE TABLE experiments (
                id TEXT PRIMARY KEY,
                round TEXT NOT NULL,
                champion TEXT NOT NULL,
                candidate TEXT NOT NULL,
                ordinal INTEGER NOT NULL,
                rules TEXT NOT NULL,
                phase TEXT NOT NULL,
                started_at TEXT NOT NULL,
                canary TEXT NOT NULL,
                offline TEXT NOT NULL,
                receipt TEXT
            ) STRICT;
            CREATE TABLE inferences (
                id TEXT PRIMARY KEY,
                experiment TEXT NOT NULL,
                model TEXT NOT NULL
            ) STRICT;
            CREATE TABLE watched (
                place INTEGER PRIMARY KEY,
                model TEXT NOT NULL,
                value REAL NOT NULL
            ) STRICT;
            CREATE INDEX watched_by_model ON watched (model, place);
            """,
        ),
    )

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, experiment: ExperimentState) -> None:
        """See `ExperimentStore.save`."""
        receipt = None if experiment.receipt is None else json.dumps(dict(experiment.receipt))
        await self._database.execute(
            f"INSERT INTO experiments ({_EXPERIMENT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            f" ON CONFLICT (id) DO UPDATE SET {_UPDATE}",
            (
                experiment.id,
                experiment.round,
                experiment.champion,
                experiment.candidate,
                experiment.ordinal,
                json.dumps(dict(experiment.rules)),
                experiment.phase,
                as_text(experiment.started_at),
                json.dumps(experiment.canary),
                json.dumps(dict(experiment.offline)),
                receipt,
            ),
        )

    async def experiment(self, experiment: str) -> ExperimentState | None:
        """See `ExperimentStore.experiment`."""
        found = await self._select("WHERE id = ?", experiment)
        return found[0] if found else None

    async def running(self) -> list[ExperimentState]:
        """See `ExperimentStore.running`."""
        return await self._select("WHERE phase <> 'finished' ORDER BY rowid")

    async def finished(self, *, limit: int = 50) -> list[ExperimentState]:
        """See `ExperimentStore.finished`."""
        return await self._select("WHERE phase = 'finished' ORDER BY rowid DESC LIMIT ?", limit)

    async def _select(self, condition: str, *parameters: str | int) -> list[ExperimentState]:
        rows = await self._database.rows(
            f"SELECT {_EXPERIMENT} FROM experiments {condition}", parameters
        )
        return [_experiment(row) for row in rows]

    async def next_ordinal(self) -> int:
        """See `ExperimentStore.next_ordinal`."""
        row = await self._database.row("SELECT coalesce(max(ordinal), 0) + 1 FROM experiments")
        return row[0] if row else 1

    async def note_inference(self, inference: str, experiment: str, model: str) -> None:
        """See `ExperimentStore.note_inference`."""
        await self._database.execute(
            "INSERT OR REPLACE INTO inferences VALUES (?, ?, ?)", (inference, experiment, model)
        )

    async def inference(self, inference: str) -> tuple[str, str] | None:
        """See `ExperimentStore.inference`."""
        row = await self._database.row(
            "SELECT experiment, model FROM inferences WHERE id = ?", (inference,)
        )
        return (row[0], row[1]) if row else None

    async def note_watch(self, model: str, value: float) -> None:
        """See `ExperimentStore.note_watch`."""
        await self._database.execute(
            "INSERT INTO watched (model, value) VALUES (?, ?)", (model, float(value))
        )

    async def watched(self, model: str) -> list[float]:
        """See `ExperimentStore.watched`."""
        rows = await self._database.rows(
            "SELECT value FROM watched WHERE model = ? ORDER BY place", (model,)
        )
        return [value for (value,) in rows]


def _experiment(row: Row) -> ExperimentState:
    *first, rules, phase, started_at, canary, offline, receipt = row
    identity, round_, champion, candidate, ordinal = first
    return ExperimentState(
        id=identity,
        round=round_,
        champion=champion,
        candidate=candidate,
        ordinal=ordinal,
        rules=json.loads(rules),
        phase=phase,
        started_at=datetime.fromisoformat(started_at),
        canary=tuple((arm, value) for arm, value in json.loads(canary)),
        offline=json.loads(offline),
        receipt=None if receipt is None else json.loads(receipt),
    )
