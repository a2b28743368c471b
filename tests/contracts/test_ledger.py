import asyncio

import pytest

from arbiters.events import ConversationDeleted
from arbiters.records import DeadLetter
from arbiters.testing import enveloped


def said(name):
    return enveloped(ConversationDeleted(conversation="c"), id=name, idempotency=name)


async def fail(ledger, *, at):
    async with ledger.transaction():
        await ledger.attempt(at)
        await ledger.advance(at, [said("lost")])
        raise ZeroDivisionError


async def test_it_starts_at_zero_with_an_empty_outbox(ledger):
    assert await ledger.cursor() == 0
    assert await ledger.outbox() == []
    assert await ledger.dead_letters() == []


async def test_advancing_moves_the_cursor_and_fills_the_outbox_in_order(ledger):
    await ledger.advance(3, [said("b"), said("a")])
    await ledger.advance(4, [said("c")])

    assert await ledger.cursor() == 4
    assert [envelope.id for envelope in await ledger.outbox()] == ["b", "a", "c"]


async def test_the_cursor_never_goes_back(ledger):
    await ledger.advance(5, [])
    await ledger.advance(2, [said("late")])

    assert await ledger.cursor() == 5
    assert [envelope.id for envelope in await ledger.outbox()] == ["late"]


async def test_what_was_sent_leaves_the_outbox(ledger):
    first, second = said("a"), said("b")
    await ledger.advance(1, [first, second])

    await ledger.sent([first])

    assert await ledger.outbox() == [second]


async def test_attempts_are_counted_by_offset(ledger):
    counts = [await ledger.attempt(7), await ledger.attempt(7), await ledger.attempt(8)]

    assert counts == [0, 1, 0]


async def test_a_forgiven_attempt_does_not_count(ledger):
    await ledger.attempt(7)
    await ledger.attempt(7)

    await ledger.forgive(7)
    await ledger.forgive(99)

    assert await ledger.attempt(7) == 1
    assert await ledger.attempt(99) == 0


async def test_advancing_forgets_attempts_up_to_there_only(ledger):
    await ledger.attempt(7)
    await ledger.attempt(8)

    await ledger.advance(7, [])

    assert await ledger.attempt(7) == 0
    assert await ledger.attempt(8) == 1


async def test_a_buried_event_can_be_exhumed_once(ledger, at):
    letter = DeadLetter(envelope=said("a"), attempts=5, error="ValueError: no", at=at())
    await ledger.bury(letter)
    assert await ledger.dead_letters() == [letter]

    assert await ledger.exhume("a") == letter.envelope

    assert await ledger.exhume("a") is None
    assert await ledger.dead_letters() == []


async def test_burying_again_replaces_the_letter(ledger, at):
    await ledger.bury(DeadLetter(envelope=said("a"), attempts=5, error="old", at=at()))
    await ledger.bury(DeadLetter(envelope=said("a"), attempts=6, error="new", at=at(1)))

    (letter,) = await ledger.dead_letters()
    assert (letter.attempts, letter.error) == (6, "new")


async def test_a_transaction_that_fails_leaves_nothing(ledger):
    await ledger.advance(1, [said("kept")])

    with pytest.raises(ZeroDivisionError):
        await fail(ledger, at=9)

    assert await ledger.cursor() == 1
    assert [envelope.id for envelope in await ledger.outbox()] == ["kept"]
    assert await ledger.attempt(9) == 0


async def test_an_inner_transaction_may_fail_alone(ledger):
    async with ledger.transaction():
        await ledger.advance(1, [])
        with pytest.raises(ZeroDivisionError):
            await fail(ledger, at=2)

    assert await ledger.cursor() == 1
    assert await ledger.outbox() == []


async def test_transactions_of_two_tasks_take_turns(ledger):
    order = []

    async def work(name):
        async with ledger.transaction():
            order.append(name)
            await asyncio.sleep(0)
            await ledger.attempt(1)
            order.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(work("a"))
        group.create_task(work("b"))

    assert order in (["a", "a", "b", "b"], ["b", "b", "a", "a"])
