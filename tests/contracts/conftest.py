"""Each port in all implementations: the fake that tests use and the real ones."""

from datetime import UTC, datetime, timedelta

import pytest

from arbiters import testing
from policies.retention import Retention
from soma_agents.storage.conversations import SqliteConversationStore
from soma_agents.storage.database import Database
from soma_agents.storage.event_log import SqliteEventLog
from soma_agents.storage.experiments import SqliteExperimentStore
from soma_agents.storage.ledger import SqliteLedger
from soma_agents.storage.personalities import SqlitePersonalityStore
from soma_agents.storage.postgres_log import PostgresEventLog
from soma_agents.storage.profiles import SqliteProfileStore
from soma_agents.storage.registry import SqliteRegistry
from soma_agents.storage.rounds import SqliteRoundStore

both = pytest.fixture(params=["memory", "sqlite"])
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def at():
    """at(n) is n minutes after the start."""
    return lambda minutes=0: START + timedelta(minutes=minutes)


async def _open(kind, path, fake, real):
    if kind == "memory":
        yield fake()
        return
    database = await Database.open(path / "state.db", real.schema)
    yield real(database)
    await database.close()


@pytest.fixture(params=["memory", "sqlite", "archived", "postgres"])
def open_log(request, tmp_path):
    match request.param:
        case "memory":
            return None
        case "sqlite":
            return lambda: SqliteEventLog.open(tmp_path / "events.db")
        case "archived":
            soon = Retention(keep=1, segment=2)
            return lambda: SqliteEventLog.open(tmp_path / "events.db", soon)
        case _:
            url = request.getfixturevalue("postgres").url()
            return lambda: PostgresEventLog.open(url)


@pytest.fixture
async def log(open_log):
    if open_log is None:
        yield testing.MemoryEventLog()
        return
    log = await open_log()
    yield log
    await log.close()


@both
async def ledger(request, tmp_path):
    async for it in _open(request.param, tmp_path, testing.MemoryLedger, SqliteLedger):
        yield it


@both
async def conversations(request, tmp_path):
    fake, real = testing.MemoryConversationStore, SqliteConversationStore
    async for it in _open(request.param, tmp_path, fake, real):
        yield it


@both
async def profiles(request, tmp_path):
    async for it in _open(request.param, tmp_path, testing.MemoryProfileStore, SqliteProfileStore):
        yield it


@both
async def personalities(request, tmp_path):
    fake, real = testing.MemoryPersonalityStore, SqlitePersonalityStore
    async for it in _open(request.param, tmp_path, fake, real):
        yield it


@both
async def rounds(request, tmp_path):
    async for it in _open(request.param, tmp_path, testing.MemoryRoundStore, SqliteRoundStore):
        yield it


@both
async def registry(request, tmp_path):
    async for it in _open(request.param, tmp_path, testing.MemoryRegistry, SqliteRegistry):
        yield it


@both
async def experiments(request, tmp_path):
    fake, real = testing.MemoryExperimentStore, SqliteExperimentStore
    async for it in _open(request.param, tmp_path, fake, real):
        yield it
