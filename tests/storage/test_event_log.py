import asyncio

import pytest

from arbiters.errors import CorruptError, InvalidError, StorageFullError, UnavailableError
from arbiters.events import ConversationDeleted
from arbiters.kernel.arbiter import Arbiter, on
from arbiters.kernel.host import Host
from arbiters.testing import FakeClock, SequentialIds, enveloped
from soma_agents.storage.database import Database
from soma_agents.storage.event_log import SqliteEventLog
from soma_agents.storage.ledger import SqliteLedger


def said(name, content="c", **circumstances):
    circumstances = {"id": name, "idempotency": name} | circumstances
    return enveloped(ConversationDeleted(conversation=content), **circumstances)


@pytest.fixture
async def log(tmp_path):
    log = await SqliteEventLog.open(tmp_path / "events.db")
    yield log
    await log.close()


async def test_a_log_goes_on_after_it_was_opened_again(tmp_path):
    log = await SqliteEventLog.open(tmp_path / "events.db")
    await log.append([said("a"), said("b")])
    await log.close()

    log = await SqliteEventLog.open(tmp_path / "events.db")

    assert await log.append([said("b"), said("c")]) == [2, 3]
    assert await log.verify() == 3
    await log.close()


async def test_closing_writes_what_waits_and_then_takes_no_more(tmp_path):
    log = await SqliteEventLog.open(tmp_path / "events.db")
    waiting = [asyncio.create_task(log.append([said(f"{n}")])) for n in range(10)]
    await asyncio.sleep(0)

    await log.close()

    assert sorted([(await task)[0] for task in waiting]) == list(range(1, 11))
    with pytest.raises(UnavailableError):
        await log.append([said("late")])


async def test_appends_of_many_are_gathered_into_few_transactions(log):
    commits = 0
    commit = log._commit

    async def counted(entries):
        nonlocal commits
        commits += 1
        return await commit(entries)

    log._commit = counted
    async with asyncio.TaskGroup() as group:
        for n in range(300):
            group.create_task(log.append([said(f"{n}")]))

    assert commits <= 3


async def test_a_cancelled_caller_does_not_take_its_event_back_nor_others_with_it(log):
    gone = asyncio.create_task(log.append([said("gone")]))
    kept = asyncio.create_task(log.append([said("kept")]))
    await asyncio.sleep(0)

    gone.cancel()

    assert await kept == [2]
    assert await log.find("gone") is not None
    assert gone.cancelled()


async def test_an_envelope_that_is_not_json_harms_nobody_else(log):
    good = asyncio.create_task(log.append([said("good")]))
    bad = asyncio.create_task(log.append([said("bad", payload={"x": {1, 2}})]))

    with pytest.raises(InvalidError, match="bad"):
        await bad

    assert await good == [1]


async def test_a_full_disk_stores_nothing_of_the_group_and_reading_goes_on(log):
    await log.append([said("a")])
    pages = (await log._database.row("PRAGMA page_count"))[0]
    await log._database.rows(f"PRAGMA max_page_count = {pages + 2}")

    with pytest.raises(StorageFullError):
        await log.append([said(f"big {n}", "x" * 4000) for n in range(10)])

    assert await log.end() == 1
    assert [e.id for e in (await log.read(0)).envelopes] == ["a"]
    await log._database.rows("PRAGMA max_page_count = 100000")
    assert await log.append([said("b")]) == [2]
    assert await log.verify() == 2


@pytest.mark.parametrize(
    "tampering",
    [
        'UPDATE events SET payload = \'{"conversation":"forged"}\' WHERE offset = 2',
        "UPDATE events SET user = 'eve' WHERE offset = 2",
        "UPDATE events SET at = '2020-01-01T00:00:00.000000+00:00' WHERE offset = 2",
        "UPDATE events SET payload_hash = zeroblob(32), payload = NULL WHERE offset = 2",
        "UPDATE events SET hash = zeroblob(32) WHERE offset = 2",
        "DELETE FROM events WHERE offset = 2",
    ],
)
async def test_tampering_is_found_at_its_offset(log, tampering):
    await log.append([said(name) for name in "abcd"])
    await log._database.execute(tampering)

    with pytest.raises(CorruptError, match="offset 2"):
        await log.verify()


async def test_what_is_erased_is_nowhere_in_the_files(tmp_path):
    path = tmp_path / "events.db"
    log = await SqliteEventLog.open(path)
    secret = said("a", payload={"conversation": "my-secret-word"})
    await log.append([secret, said("b", "other-word")])
    assert any(b"my-secret-word" in file.read_bytes() for file in tmp_path.iterdir())

    await log.erase(["a"])

    assert not any(b"my-secret-word" in file.read_bytes() for file in tmp_path.iterdir())
    assert await log.verify() == 2
    await log.close()


async def test_equal_payloads_have_unequal_hashes_so_that_nobody_can_guess_what_was_erased(log):
    await log.append([said("a", "yes"), said("b", "yes")])

    hashes = await log._database.rows("SELECT payload_hash FROM events")

    assert len(set(hashes)) == 2


async def test_a_rare_type_is_found_far_behind_many_others(log, monkeypatch):
    monkeypatch.setattr("soma_agents.storage.chained_log._SCAN", 10)
    await log.append([said(f"{n}") for n in range(95)])
    await log.append([said("rare", type="RoundRequested")])

    batch = await log.read(0, types=frozenset({"RoundRequested"}))

    assert [e.id for e in batch.envelopes] == ["rare"]
    assert batch.end == 96


class Deaf(Arbiter):
    name = "deaf"

    @on(ConversationDeleted)
    async def ignore(self, _event, _envelope):
        pass


async def test_an_idle_arbiter_writes_nothing_to_the_disk(log, tmp_path):
    from arbiters.events import RoundRequested

    database = await Database.open(tmp_path / "state.db", SqliteLedger.schema)
    parts = {"log": log, "ledger": SqliteLedger(database), "clock": FakeClock()}
    host = Host(Deaf(), ids=SequentialIds(), **parts)
    await log.append([said("a")])
    await host.drain()
    await log.append([enveloped(RoundRequested(by="user"))])

    def written():
        return {f.name: (f.stat().st_mtime_ns, f.stat().st_size) for f in tmp_path.iterdir()}

    before = written()
    for _ in range(5):
        await host.step(wait=0.001)

    assert written() == before
    await database.close()
