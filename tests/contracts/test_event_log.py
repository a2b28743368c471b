import asyncio

import pytest

from arbiters.errors import InvalidError
from arbiters.events import ConversationDeleted, FactForgotten
from arbiters.testing import enveloped


def said(name, **circumstances):
    circumstances = {"id": name, "idempotency": name} | circumstances
    return enveloped(ConversationDeleted(conversation=f"about {name}"), **circumstances)


def names(envelopes):
    return [envelope.id for envelope in envelopes]


async def test_offsets_start_at_one_and_have_no_gaps(log):
    assert await log.end() == 0

    assert await log.append([said("a"), said("b")]) == [1, 2]
    assert await log.append([said("c")]) == [3]

    assert await log.end() == 3


async def test_what_is_read_is_what_was_appended(log):
    envelope = said("a", user="eve", tenant="office", cause="x", payload={"n": [1, "ü", None]})

    await log.append([envelope])

    (read,) = (await log.read(0)).envelopes
    assert read == envelope._replace(offset=1)
    assert await log.find("a") == read
    assert await log.find("b") is None


async def test_appending_nothing_is_nothing(log):
    assert await log.append([]) == []

    assert await log.end() == 0


async def test_a_known_idempotency_key_is_dropped_and_its_first_offset_returned(log):
    await log.append([said("a"), said("b")])

    again = await log.append([said("c"), said("other id", idempotency="b")])

    assert again == [3, 2]
    assert names((await log.read(0)).envelopes) == ["a", "b", "c"]


async def test_a_key_twice_in_one_group_is_stored_once(log):
    offsets = await log.append([said("a"), said("a2", idempotency="a"), said("b")])

    assert offsets == [1, 1, 2]
    assert await log.end() == 2


async def test_another_event_under_a_known_id_is_refused_with_all_that_was_said_with_it(log):
    await log.append([said("a")])

    with pytest.raises(InvalidError):
        await log.append([said("b"), said("c", id="a")])
    with pytest.raises(InvalidError):
        await log.append([said("d"), said("e", id="d")])

    assert await log.append([said("a"), said("b", id="a", idempotency="a"), said("b")]) == [1, 1, 2]
    assert names((await log.read(0)).envelopes) == ["a", "b"]


async def test_concurrent_appends_all_get_their_own_offset(log):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(log.append([said(f"{n}")])) for n in range(200)]

    assert sorted(offset for task in tasks for offset in task.result()) == list(range(1, 201))
    assert await log.verify() == 200


async def test_reading_is_limited_and_goes_on_from_the_end_of_the_batch(log):
    await log.append([said(name) for name in "abcde"])

    first = await log.read(0, limit=3)
    second = await log.read(first.end, limit=3)

    assert (names(first.envelopes), first.end) == (["a", "b", "c"], 3)
    assert (names(second.envelopes), second.end) == (["d", "e"], 5)


async def test_reading_some_types_says_up_to_where_it_looked(log):
    fact = enveloped(FactForgotten(subject="name"), id="fact", idempotency="fact")
    await log.append([said("a"), fact, said("b"), said("c")])

    facts = await log.read(0, types=frozenset({"FactForgotten"}))
    none = await log.read(0, types=frozenset({"RoundStarted"}))

    assert (names(facts.envelopes), facts.end) == (["fact"], 4)
    assert (names(none.envelopes), none.end) == ([], 4)


async def test_reading_beyond_the_end_is_empty_and_stays_there(log):
    await log.append([said("a")])

    batch = await log.read(1)

    assert (list(batch.envelopes), batch.end) == ([], 1)
    assert (await log.read(7)).end == 7


async def test_a_reader_that_waits_wakes_when_something_comes(log):
    waiting = asyncio.create_task(log.read(0, wait=30))
    await asyncio.sleep(0)

    await log.append([said("a")])

    assert names((await asyncio.wait_for(waiting, 5)).envelopes) == ["a"]


async def test_a_reader_that_waits_sleeps_through_types_it_does_not_hear(log):
    waiting = asyncio.create_task(log.read(0, types=frozenset({"RoundStarted"}), wait=30))
    await asyncio.sleep(0)

    await log.append([said("a")])
    await log.append([said("b")])
    assert not waiting.done()
    await log.append([said("c", type="RoundStarted")])

    batch = await asyncio.wait_for(waiting, 5)
    assert (names(batch.envelopes), batch.end) == (["c"], 3)


async def test_a_reader_that_waits_wakes_for_the_types_it_hears(log):
    waiting = asyncio.create_task(log.read(0, types=frozenset({"FactStated"}), wait=30))
    await log.append([said("a")])

    await log.append([said("b")._replace(type="FactStated")])

    batch = await asyncio.wait_for(waiting, 5)
    assert (names(batch.envelopes), batch.end) == (["b"], 2)


async def test_waiting_in_vain_ends(log):
    batch = await log.read(0, wait=0.01)

    assert (list(batch.envelopes), batch.end) == ([], 0)


async def test_effects_are_found_by_their_cause(log):
    await log.append([said("a"), said("b", cause="a"), said("c", cause="b"), said("d", cause="a")])

    assert names(await log.caused_by("a")) == ["b", "d"]
    assert await log.caused_by("d") == []


async def test_what_is_erased_is_gone_and_the_chain_still_holds(log):
    await log.append([said(name) for name in "abc"])

    assert await log.erase(["b", "unknown"]) == 1

    assert (await log.find("b")).payload == {}
    assert names((await log.read(0)).envelopes) == ["a", "c"]
    assert (await log.read(0)).end == 3
    assert await log.erase(["b"]) == 0
    assert await log.verify() == 3


async def test_a_limit_reached_among_erased_ones_loses_nothing(log):
    await log.append([said(name) for name in "abcd"])
    await log.erase(["a", "c"])

    first = await log.read(0, limit=1)
    second = await log.read(first.end, limit=1)

    assert names(first.envelopes) == ["b"]
    assert names(second.envelopes) == ["d"]


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_an_untouched_log_verifies_to_its_length(log, count):
    await log.append([said(f"{n}") for n in range(count)])

    assert await log.verify() == count
