import pytest

from arbiters.errors import StorageFullError
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


class Deaf(Arbiter):
    name = "deaf"

    @on(ConversationDeleted)
    async def ignore(self, _event, _envelope):
        pass


async def test_an_idle_arbiter_writes_nothing_to_the_disk(log, tmp_path):
    from arbiters.model_events import RoundRequested

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
