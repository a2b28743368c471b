"""What every engine of the log promises beyond the port: it outlives the process."""

import asyncio
import time

import pytest

from arbiters.errors import BusyError, CorruptError, InvalidError, UnavailableError
from soma_agents.storage import chained_log
from tests.contracts.test_event_log import names, said

pytestmark = pytest.mark.parametrize("open_log", ["sqlite", "postgres"], indirect=True)


async def rows(log, sql):
    """Run a statement behind the log's back."""
    engine = getattr(log, "_database", None) or log._server
    return await engine.rows(sql)


async def test_a_log_goes_on_after_it_was_opened_again(open_log):
    log = await open_log()
    await log.append([said("a"), said("b")])
    await log.close()

    log = await open_log()

    assert await log.append([said("b"), said("c")]) == [2, 3]
    assert await log.verify() == 3
    await log.close()


async def test_closing_writes_what_waits_and_then_takes_no_more(open_log):
    log = await open_log()
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


async def test_when_too_many_wait_one_more_is_refused_at_once_and_later_taken(log, monkeypatch):
    monkeypatch.setattr(chained_log, "WAITING", 10)
    first = asyncio.create_task(log.append([said("first")]))
    group = asyncio.create_task(log.append([said(f"{n}") for n in range(9)]))
    await asyncio.sleep(0)
    began = time.perf_counter()

    with pytest.raises(BusyError, match="10 events wait") as refused:
        await log.append([said("late")])

    assert time.perf_counter() - began < 0.05
    assert refused.value.retry_after > 0
    assert await first == [1]
    assert await group == list(range(2, 11))
    assert await log.append([said("late")]) == [11]


async def test_a_group_larger_than_the_bound_is_taken_when_nobody_waits(log, monkeypatch):
    monkeypatch.setattr(chained_log, "WAITING", 10)

    offsets = await log.append([said(f"{n}") for n in range(11)])

    assert offsets == list(range(1, 12))


@pytest.mark.parametrize("bad", [said("bad", id="first"), said("bad", key="\ud800")])
async def test_an_envelope_that_cannot_be_stored_harms_nobody_else(log, bad):
    await log.append([said("first")])
    tasks = [asyncio.create_task(log.append([each])) for each in (said("x"), bad, said("y"))]

    await asyncio.wait(tasks)

    assert isinstance(tasks[1].exception(), InvalidError)
    assert [tasks[0].result(), tasks[2].result()] == [[2], [3]]
    assert await log.verify() == 3


@pytest.mark.parametrize(
    "tampering",
    [
        """SET payload = '{"conversation":"forged"}'""",
        """SET "user" = 'eve'""",
        """SET at = '2020-01-01T00:00:00.000000+00:00'""",
        """SET payload_hash = hash, payload = NULL""",
        """SET hash = payload_hash""",
        None,
    ],
)
async def test_tampering_is_found_at_its_offset(log, tampering):
    await log.append([said(name) for name in "abcd"])
    what = f"UPDATE events {tampering}" if tampering else "DELETE FROM events"
    await rows(log, f"""{what} WHERE "offset" = 2""")

    with pytest.raises(CorruptError, match="offset 2"):
        await log.verify()


async def test_equal_payloads_have_unequal_hashes_so_that_nobody_can_guess_what_was_erased(log):
    same = {"conversation": "yes"}
    await log.append([said("a", payload=same), said("b", payload=same)])

    hashes = await rows(log, "SELECT payload_hash FROM events")

    assert len(set(hashes)) == 2


async def test_a_rare_type_is_found_far_behind_many_others(log, monkeypatch):
    monkeypatch.setattr("soma_agents.storage.chained_log._SCAN", 10)
    await log.append([said(f"{n}") for n in range(95)])
    await log.append([said("rare", type="RoundRequested")])

    batch = await log.read(0, types=frozenset({"RoundRequested"}))

    assert names(batch.envelopes) == ["rare"]
    assert batch.end == 96
