"""What only a server does: it dies alone, is shared by many, and may be set up wrongly."""

import asyncio
import random
import subprocess
import sys
from contextlib import suppress

import pytest

from arbiters.errors import (
    ConflictError,
    InvalidError,
    SomaError,
    StorageFullError,
    UnavailableError,
)
from arbiters.events import ConversationDeleted
from arbiters.testing import enveloped
from soma_agents.settings import load_settings
from soma_agents.storage import postgres_log
from soma_agents.storage.chain import entries
from soma_agents.storage.engines import open_log
from soma_agents.storage.event_log import SqliteEventLog
from soma_agents.storage.postgres_log import PostgresEventLog
from soma_agents.storage.sqlite_files import Schema


def said(name, **circumstances):
    circumstances = {"id": name, "idempotency": name} | circumstances
    return enveloped(ConversationDeleted(conversation="c"), **circumstances)


@pytest.fixture
def url(postgres):
    return postgres.url()


@pytest.fixture
async def log(url):
    log = await PostgresEventLog.open(url)
    yield log
    await log.close()


@pytest.fixture
async def other(url):
    """The same log as another process has it: nothing shared but the server."""
    other = await PostgresEventLog.open(url)
    yield other
    await other.close()


# --- many at once --------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from arbiters.events import ConversationDeleted
from arbiters.testing import enveloped
from soma_agents.storage.postgres_log import PostgresEventLog

async def main(url, name):
    log = await PostgresEventLog.open(url)
    event = ConversationDeleted(conversation="c")
    print("ready", flush=True)
    await log.read(0, wait=30)
    for n in range(60):
        names = [f"{name}-{n}-{i}" for i in range(5)]
        await log.append([enveloped(event, id=x, idempotency=x) for x in names])
    await log.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_processes_that_append_at_once_share_one_order_without_gaps(url, log):
    command = [sys.executable, "-c", WRITER, url]
    writers = [
        await asyncio.create_subprocess_exec(*command, name, stdout=subprocess.PIPE)
        for name in ("x", "y")
    ]
    for writer in writers:
        assert await writer.stdout.readline() == b"ready\n"
    await log.append([said("go")])
    heard = []
    while len(heard) < 601:
        batch = await log.read(len(heard), wait=10)
        assert batch.envelopes, "a writer gave up"
        assert [e.offset for e in batch.envelopes] == list(range(len(heard) + 1, batch.end + 1))
        heard += [envelope.id for envelope in batch.envelopes]

    assert [await writer.wait() for writer in writers] == [0, 0]
    for name in ("x", "y"):
        mine = [id_ for id_ in heard if id_.startswith(name)]
        assert mine == [f"{name}-{n}-{i}" for n in range(60) for i in range(5)]
    assert await log.verify() == 601


async def test_a_key_that_two_append_at_once_is_stored_once(log, other):
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(one.append([said(f"{n}")])) for n in range(50) for one in (log, other)
        ]

    offsets = [task.result()[0] for task in tasks]
    assert offsets[::2] == offsets[1::2]
    assert await log.end() == 50


async def test_a_waiting_reader_is_told_what_another_process_appended(log, other, monkeypatch):
    monkeypatch.setattr(postgres_log, "_POLL_S", 60)
    waiting = asyncio.create_task(log.read(0, wait=30))
    await asyncio.sleep(0)

    await other.append([said("a")])

    assert [e.id for e in (await asyncio.wait_for(waiting, 5)).envelopes] == ["a"]


async def test_a_waiting_reader_looks_for_itself_when_nobody_tells_it(url, other, monkeypatch):
    monkeypatch.setattr(postgres_log, "_POLL_S", 0.01)
    monkeypatch.setattr(postgres_log, "_CHANNEL", "elsewhere")
    deaf = await PostgresEventLog.open(url)
    monkeypatch.setattr(postgres_log, "_CHANNEL", "soma_events")
    waiting = asyncio.create_task(deaf.read(0, wait=30))

    await other.append([said("a")])

    assert [e.id for e in (await asyncio.wait_for(waiting, 5)).envelopes] == ["a"]
    await deaf.close()


async def test_a_process_that_stops_inside_a_transaction_does_not_hold_up_the_others(
    url, log, monkeypatch
):
    limit = "idle_in_transaction_session_timeout"
    monkeypatch.setitem(sys.modules["soma_agents.storage.postgres"]._SESSION, limit, "100ms")
    stopped = await PostgresEventLog.open(url)

    async def stop_inside():
        async with stopped._server.transaction() as connection:
            await connection.execute("SELECT 1 FROM events_head FOR UPDATE")
            await log.append([said("a")])

    with pytest.raises(UnavailableError):
        await stop_inside()
    assert await log.end() == 1
    await stopped.close()


@pytest.mark.parametrize("seed", range(3))
async def test_no_cancellation_leaves_a_transaction_open_or_half_of_it_written(postgres, log, seed):
    chance = random.Random(seed)
    for n in range(25):
        new = entries([said(f"{n}-{half}") for half in (1, 2)])
        task = asyncio.create_task(log._commit(new))
        await asyncio.sleep(chance.random() * 0.004)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    open_ = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    assert postgres.sql(open_) == "0"
    assert await log.end() % 2 == 0
    assert await log.verify() == await log.end()
    assert await log.append([said("after")]) == [await log.end()]


# --- a server that dies --------------------------------------------------------------------


async def test_a_server_killed_under_appends_loses_nothing_it_acknowledged(postgres, log):
    acknowledged, goal = {}, asyncio.Condition()

    async def append(n):
        while True:
            try:
                (offset,) = await log.append([said(f"{n}")])
            except UnavailableError:
                await asyncio.sleep(0.01)
                continue
            break
        async with goal:
            acknowledged[f"{n}"] = offset
            goal.notify_all()

    async def writer(first):
        for n in range(first, first + 100):
            await append(n)

    async with asyncio.TaskGroup() as group:
        for first in range(0, 1000, 100):
            group.create_task(writer(first))
        for enough in (200, 600):
            async with goal:
                while len(acknowledged) < enough:
                    await goal.wait()
            postgres.kill()
            await asyncio.to_thread(postgres.start)

    stored = (await log.read(0, limit=2000)).envelopes
    assert {e.id: e.offset for e in stored} == acknowledged
    assert await log.verify() == 1000


async def test_while_the_server_is_away_everything_says_so_and_then_goes_on(
    postgres, log, other, monkeypatch
):
    await log.append([said("a")])
    waiting = asyncio.create_task(log.read(1, wait=30))
    await asyncio.sleep(0)
    postgres.kill()
    try:
        for call in (log.append([said("b")]), log.read(0), log.end(), log.find("a"), waiting):
            with pytest.raises(UnavailableError, match="postgresql:///postgres is not there"):
                await call
    finally:
        postgres.start()

    assert await log.append([said("b")]) == [2]
    monkeypatch.setattr(postgres_log, "_POLL_S", 60)
    waiting = asyncio.create_task(log.read(2, wait=30))
    await asyncio.sleep(0)
    await other.append([said("c")])
    assert [e.id for e in (await asyncio.wait_for(waiting, 5)).envelopes] == ["c"]


async def test_a_full_disk_stores_nothing_of_the_group_and_reading_goes_on(log):
    await log.append([said("a")])
    async with log._server.connection() as connection:
        await connection.execute(
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = '53100'; END $$;
            CREATE TRIGGER full_disk BEFORE INSERT ON events
            FOR EACH ROW WHEN (NEW.id = 'c') EXECUTE FUNCTION refuse();
            """
        )

    with pytest.raises(StorageFullError, match="no room left at postgresql:///postgres"):
        await log.append([said("b"), said("c")])

    assert [e.id for e in (await log.read(0)).envelopes] == ["a"]
    assert await log.append([said("b")]) == [2]
    assert await log.verify() == 2


@pytest.mark.parametrize(
    "bad",
    [said("bad", user="a\x00b"), said("bad", cause="long" * 1_000_000)],
    ids=["a text the server cannot hold", "a key too long for an index"],
)
async def test_what_cannot_be_stored_harms_nobody_in_its_group(log, bad):
    await log.append([said("first")])
    tasks = [asyncio.create_task(log.append([e])) for e in (said("x"), bad, said("y"))]
    await asyncio.wait(tasks)

    assert isinstance(tasks[1].exception(), InvalidError)
    assert [tasks[0].result(), tasks[2].result()] == [[2], [3]]


# --- a server that is not as it should be --------------------------------------------------


async def test_a_server_that_would_lose_acknowledged_events_is_refused(url):
    with pytest.raises(InvalidError, match="synchronous_commit is 'off', the log needs 'on'"):
        await PostgresEventLog.open(f"{url}&synchronous_commit=off")


async def test_tables_of_a_newer_soma_are_left_alone(url, monkeypatch):
    newer = Schema("event_log", (*PostgresEventLog.schema.migrations, "CREATE TABLE more (x int)"))
    with monkeypatch.context() as patch:
        patch.setattr(PostgresEventLog, "schema", newer)
        await (await PostgresEventLog.open(url)).close()

    with pytest.raises(SomaError, match=r"'event_log' in version 2.*upgrade SOMA"):
        await PostgresEventLog.open(url)


@pytest.mark.parametrize("change", ["role", "database", "address"])
async def test_a_wrong_address_is_named_without_what_opens_it(url, change):
    wrong = {
        "role": (url.replace("soma@", "nobody:hush@"), InvalidError),
        "database": (url.replace("/postgres?", "/missing?"), InvalidError),
        "address": ("postgresql://me:hush@127.0.0.1:1/soma", UnavailableError),
    }
    address, error = wrong[change]

    with pytest.raises(error, match="postgresql://") as raised:
        await PostgresEventLog.open(address)

    assert "hush" not in str(raised.value)


# --- choosing it ---------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [SqliteEventLog, PostgresEventLog])
async def test_the_setting_chooses_the_engine(tmp_path, url, engine):
    overrides = {"log": {"url": url if engine is PostgresEventLog else ""}}

    log = await open_log(load_settings(tmp_path, environ={}, overrides=overrides))

    assert type(log) is engine
    await log.close()


async def test_a_second_log_beside_the_first_is_refused(tmp_path, url):
    await (await open_log(load_settings(tmp_path, environ={}))).close()

    with pytest.raises(ConflictError, match="start with an empty data directory"):
        await open_log(load_settings(tmp_path, environ={"SOMA_LOG__URL": url}))
