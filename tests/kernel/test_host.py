"""What the host promises: heard at least once, effective once, in order, never silent."""

import asyncio
from contextlib import suppress

import pytest

from arbiters.errors import (
    BusyError,
    CorruptError,
    NotFoundError,
    SomaError,
    StorageFullError,
    UnavailableError,
)
from arbiters.events import ConversationDeleted, FactForgotten
from arbiters.kernel import host as kernel
from arbiters.kernel.arbiter import Arbiter, on, query
from arbiters.kernel.bus import Publisher
from arbiters.kernel.host import Host
from arbiters.model_events import RoundRequested
from arbiters.testing import (
    FakeClock,
    Memory,
    MemoryEventLog,
    MemoryLedger,
    SequentialIds,
    enveloped,
)


class Heard(Memory):
    """A store: what was heard, once for each effect."""

    def __init__(self):
        self.subjects = []


class Echo(Arbiter):
    """Forgets a fact for every conversation that was deleted, unless told to stumble."""

    name = "echo"

    def __init__(self, heard, stumble=None):
        self.heard = heard
        self.stumble = stumble or (lambda _: None)
        self.tries = []

    @on(ConversationDeleted)
    async def echo(self, event, _):
        self.tries.append(event.conversation)
        self.heard.subjects.append(event.conversation)
        yield FactForgotten(subject=event.conversation)
        self.stumble(event.conversation)

    @query
    async def subjects(self, last=None):
        return self.heard.subjects[-last:] if last else list(self.heard.subjects)


class World:
    """A log, and one arbiter with its database, that may live several times."""

    def __init__(self, log=None, ledger=None):
        self.heard = Heard()
        self.log = log or MemoryEventLog()
        self.ledger = ledger or MemoryLedger(self.heard)
        self.clock = FakeClock()
        self.ids = SequentialIds()

    def host(self, arbiter):
        return Host(arbiter, log=self.log, ledger=self.ledger, clock=self.clock, ids=self.ids)

    def echo(self, stumble=None):
        return self.host(Echo(self.heard, stumble))

    async def delete(self, *conversations):
        publisher = Publisher(log=self.log, clock=self.clock, ids=self.ids, producer="test")
        return [
            await publisher.publish(ConversationDeleted(conversation=name))
            for name in conversations
        ]

    async def said(self, kind):
        batch = await self.log.read(0, types=frozenset({kind}))
        return list(batch.envelopes)

    async def forgotten(self):
        return [envelope.payload["subject"] for envelope in await self.said("FactForgotten")]


@pytest.fixture
def world():
    return World()


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(kernel, "RETRY_SECONDS", (0.0,) * 5)
    monkeypatch.setattr(kernel, "POLL_SECONDS", 0.01)


def always(wrong, error=ValueError):
    def stumble(conversation):
        if conversation == wrong:
            raise error(f"cannot hear {conversation}")

    return stumble


async def stop(task):
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def until(condition):
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - several things move it
            await asyncio.sleep(0)


# --- hearing -------------------------------------------------------------------------------


async def test_events_are_heard_in_order_and_answered_in_order(world):
    await world.delete("a", "b", "c")

    await world.echo().drain()

    assert world.heard.subjects == ["a", "b", "c"]
    assert await world.forgotten() == ["a", "b", "c"]


async def test_what_is_said_inherits_its_circumstances_from_its_cause(world):
    (cause,) = await world.delete("a")

    await world.echo().drain()

    (said,) = await world.said("FactForgotten")
    assert (said.cause, said.correlation) == (cause.id, cause.correlation)
    assert (said.producer, said.tenant, said.user) == ("echo", cause.tenant, cause.user)


async def test_a_new_life_goes_on_where_the_last_one_stopped(world):
    await world.delete("a")
    await world.echo().drain()
    await world.delete("b")

    await world.echo().drain()

    assert world.heard.subjects == ["a", "b"]
    assert await world.forgotten() == ["a", "b"]


async def test_more_than_a_batch_is_heard_in_batches(world):
    await world.delete(*(str(n) for n in range(1200)))

    await world.echo().drain()

    assert world.heard.subjects == [str(n) for n in range(1200)]


async def test_other_types_move_the_cursor_in_memory_but_write_nothing(world):
    await world.log.append([enveloped(RoundRequested(by="user"))])
    before = world.ledger.snapshot()
    host = world.echo()

    await host.drain()

    assert await host.ask("subjects", {}, at_least=1, patience=1) == []
    assert world.ledger.snapshot() == before


# --- once and only once --------------------------------------------------------------------


class DyingLog(MemoryEventLog):
    """Loses the connection at the next append, before or after it took effect, or has no room."""

    dies = None

    async def append(self, envelopes):
        dies, self.dies = self.dies, None
        if dies == "before":
            raise UnavailableError("gone")
        if dies == "busy":
            raise BusyError("full", retry_after=0.01)
        offsets = await super().append(envelopes)
        if dies == "after":
            raise UnavailableError("gone")
        return offsets


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_death_between_commit_and_publish_has_every_effect_once(when):
    world = World(log=DyingLog())
    await world.delete("a", "b")
    world.log.dies = when
    with pytest.raises(UnavailableError):
        await world.echo().drain()

    await world.echo().drain()

    assert world.heard.subjects == ["a", "b"]
    assert await world.forgotten() == ["a", "b"]
    assert await world.ledger.outbox() == []


@pytest.mark.parametrize("when", ["before", "after", "busy"])
async def test_a_log_that_was_away_gets_what_was_committed_once_it_is_back(when):
    world = World(log=DyingLog())
    await world.delete("a")
    world.log.dies = when
    task = asyncio.create_task(world.echo().run())

    async def said():
        return bool(await world.forgotten()) and not await world.ledger.outbox()

    await until(said)
    await stop(task)

    assert world.heard.subjects == ["a"]
    assert await world.forgotten() == ["a"]
    assert await world.ledger.dead_letters() == []


async def test_a_failing_handler_leaves_no_trace_of_its_try(world):
    stumbles = iter([True, False])

    def once(_):
        if next(stumbles):
            raise ValueError("not now")

    await world.delete("a")

    await world.echo(once).drain()

    assert world.heard.subjects == ["a"]
    assert await world.forgotten() == ["a"]
    assert await world.ledger.dead_letters() == []


# --- poison --------------------------------------------------------------------------------


async def test_a_poisonous_event_is_buried_after_five_tries_and_the_others_go_on(world):
    await world.delete("a", "bad", "c")
    host = world.echo(always("bad"))

    await host.drain()

    assert world.heard.subjects == ["a", "c"]
    assert await world.forgotten() == ["a", "c"]
    (letter,) = await host.dead_letters()
    assert letter.envelope.payload == {"conversation": "bad"}
    assert (letter.attempts, letter.error) == (5, "ValueError: cannot hear bad")


async def test_a_poisonous_event_alone_is_tried_five_times(world):
    await world.delete("bad")
    host = world.echo(always("bad"))

    await host.drain()

    assert host.arbiter.tries == ["bad"] * 5


async def test_a_burial_is_said(world):
    (_, bad) = await world.delete("a", "bad")

    await world.echo(always("bad")).drain()

    (failed,) = await world.said("ArbiterFailed")
    assert failed.cause == bad.id
    assert failed.payload == {
        "arbiter": "echo",
        "event": bad.id,
        "event_type": "ConversationDeleted",
        "key": "bad",
        "attempts": 5,
        "error": "ValueError: cannot hear bad",
    }


async def test_an_event_that_kills_the_process_is_buried_in_the_sixth_life(world):
    await world.delete("bad", "b")

    class Killed(BaseException):
        pass

    for _ in range(5):
        with pytest.raises(Killed):
            await world.echo(always("bad", Killed)).drain()
    host = world.echo(always("bad", Killed))
    await host.drain()

    (letter,) = await host.dead_letters()
    assert letter.error == "the process died while handling it"
    assert world.heard.subjects == ["b"]


async def test_an_event_nobody_can_read_is_buried(world):
    broken = enveloped(ConversationDeleted(conversation="a"), payload={"unheard": "of"})
    await world.log.append([broken])
    host = world.echo()

    await host.drain()

    (letter,) = await host.dead_letters()
    assert "unheard" in letter.error


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
@pytest.mark.parametrize("error", [StorageFullError, CorruptError])
async def test_a_full_or_broken_disk_is_no_fault_of_the_event(world, names, error):
    await world.delete(*names)
    ill = world.echo(always("a", error))
    for _ in range(7):
        with pytest.raises(error):
            await ill.step(wait=0)
    ill.arbiter.stumble = lambda _: None

    await ill.drain()

    assert world.heard.subjects == list(names)
    assert await ill.dead_letters() == []


async def test_a_full_disk_is_waited_out(world):
    room = False

    def full(_):
        if not room:
            raise StorageFullError("full")

    await world.delete("a")
    host = world.echo(full)
    task = asyncio.create_task(host.run())

    async def tried_often():
        return len(host.arbiter.tries) > 6

    await until(tried_often)
    room = True

    assert await host.ask("subjects", {}, at_least=1) == ["a"]
    await stop(task)


async def test_a_damaged_database_ends_the_run(world):
    await world.delete("a")

    with pytest.raises(CorruptError):
        await asyncio.wait_for(world.echo(always("a", CorruptError)).run(), 10)


# --- replay --------------------------------------------------------------------------------


async def test_a_dead_letter_is_replayed_once_it_can_be_heard(world):
    (bad, _) = await world.delete("bad", "b")
    host = world.echo(always("bad"))
    await host.drain()
    host.arbiter.stumble = lambda _: None

    await host.replay(bad.id)

    assert world.heard.subjects == ["b", "bad"]
    assert await world.forgotten() == ["b", "bad"]
    assert await host.dead_letters() == []
    assert await world.ledger.cursor() == 2


async def test_a_replay_that_fails_again_keeps_the_dead_letter(world):
    (bad,) = await world.delete("bad")
    host = world.echo(always("bad"))
    await host.drain()

    with pytest.raises(SomaError, match="failed again"):
        await host.replay(bad.id)

    (letter,) = await host.dead_letters()
    assert letter.attempts == 6
    assert world.heard.subjects == []


async def test_a_replay_onto_a_full_disk_leaves_the_dead_letter_as_it_was(world):
    (bad,) = await world.delete("bad")
    host = world.echo(always("bad"))
    await host.drain()
    before = await host.dead_letters()
    host.arbiter.stumble = always("bad", StorageFullError)

    with pytest.raises(StorageFullError):
        await host.replay(bad.id)

    assert await host.dead_letters() == before


async def test_what_is_not_a_dead_letter_cannot_be_replayed(world):
    with pytest.raises(NotFoundError, match="'nothing'"):
        await world.echo().replay("nothing")


# --- asking --------------------------------------------------------------------------------


async def test_a_question_waits_until_the_arbiter_has_seen_the_offset(world):
    host = world.echo()
    task = asyncio.create_task(host.run())
    answer = asyncio.create_task(host.ask("subjects", {"last": 1}, at_least=2))

    await world.delete("a", "b")

    assert await asyncio.wait_for(answer, 10) == ["b"]
    await stop(task)


async def test_a_question_waits_for_what_concerns_the_arbiter_not_for_what_follows(
    world, monkeypatch
):
    monkeypatch.setattr(kernel, "POLL_SECONDS", 30)
    reached, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Echo):
        @on(ConversationDeleted)
        async def echo(self, event, envelope):
            reached.set()
            await go_on.wait()
            async for said in super().echo(event, envelope):
                yield said

    host = world.host(Slow(world.heard))
    task = asyncio.create_task(host.run())
    await world.delete("a")
    await asyncio.wait_for(reached.wait(), 5)
    await world.log.append([enveloped(RoundRequested(by="user"))])
    answer = asyncio.create_task(host.ask("subjects", {}, at_least=2))

    go_on.set()

    assert await asyncio.wait_for(answer, 2) == ["a"]
    await stop(task)


async def test_a_question_does_not_wait_for_events_that_do_not_concern_the_arbiter(
    world, monkeypatch
):
    monkeypatch.setattr(kernel, "POLL_SECONDS", 30)
    host = world.echo()
    task = asyncio.create_task(host.run())
    await world.log.append([enveloped(RoundRequested(by="user"))])

    answer = await asyncio.wait_for(host.ask("subjects", {}, at_least=1), 2)

    assert answer == []
    await stop(task)


async def test_a_question_does_not_wait_for_ever(world):
    with pytest.raises(UnavailableError, match="at offset 0, not yet at 5"):
        await world.echo().ask("subjects", {}, at_least=5, patience=0.01)


@pytest.mark.parametrize("question", ["nonsense", "echo", "_private", "name", "handlers"])
async def test_only_questions_can_be_asked(world, question):
    with pytest.raises(NotFoundError, match=question):
        await world.echo().ask(question, {})


# --- stopping ------------------------------------------------------------------------------


async def test_a_death_in_the_wait_before_the_next_attempt_is_no_attempt(world, monkeypatch):
    monkeypatch.setattr(kernel, "RETRY_SECONDS", (0.0,) + (3600.0,) * 4)
    (cause,) = await world.delete("a")
    for _ in range(5):
        life = asyncio.create_task(world.echo(always("a")).run())
        for _ in range(50):
            await asyncio.sleep(0)
        life.cancel()  # it is not awaited: a death

    assert await world.ledger.attempt(cause.offset) == 1
    assert await world.ledger.dead_letters() == []


async def test_a_host_that_waits_for_news_stops_at_once(world, monkeypatch):
    monkeypatch.setattr(kernel, "POLL_SECONDS", 3600)
    task = asyncio.create_task(world.echo().run())
    for _ in range(10):
        await asyncio.sleep(0)

    async with asyncio.timeout(2):
        await stop(task)

    assert task.cancelled()


class Slow(Arbiter):
    """Holds on in the middle of handling until it may go on."""

    name = "slow"

    def __init__(self, heard):
        self.heard = heard
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    @on(ConversationDeleted)
    async def dawdle(self, event, _):
        yield FactForgotten(subject=f"begun {event.conversation}")
        self.begun.set()
        await self.go_on.wait()
        self.heard.subjects.append(event.conversation)
        yield FactForgotten(subject=f"done {event.conversation}")


class Worker(Slow):
    """The same as long work: outside any transaction, one event at a time."""

    name = "worker"
    batch = 1


async def test_a_batch_being_handled_runs_to_its_commit(world):
    await world.delete("a", "b")
    arbiter = Slow(world.heard)
    task = asyncio.create_task(world.host(arbiter).run())
    await arbiter.begun.wait()

    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    arbiter.go_on.set()
    await stop(task)

    assert world.heard.subjects == ["a", "b"]
    assert await world.forgotten() == ["begun a", "done a", "begun b", "done b"]
    assert await world.ledger.cursor() == 2


# --- long work -----------------------------------------------------------------------------


async def test_long_work_publishes_at_once_what_it_says(world):
    await world.delete("a")
    arbiter = Worker(world.heard)
    task = asyncio.create_task(world.host(arbiter).run())

    await arbiter.begun.wait()

    assert await world.forgotten() == ["begun a"]
    assert await world.ledger.cursor() == 0
    await stop(task)


async def test_long_work_stops_at_once_and_is_taken_up_again(world):
    await world.delete("a")
    for _ in range(7):
        arbiter = Worker(world.heard)
        task = asyncio.create_task(world.host(arbiter).run())
        await arbiter.begun.wait()
        async with asyncio.timeout(2):
            await stop(task)

    arbiter = Worker(world.heard)
    arbiter.go_on.set()
    await world.host(arbiter).drain()

    assert await world.forgotten() == ["begun a", "done a"]
    assert await world.ledger.cursor() == 1
    assert await world.ledger.dead_letters() == []


async def test_long_work_survives_a_log_that_is_away_for_a_while():
    world = World(log=DyingLog())
    await world.delete("a")
    arbiter = Worker(world.heard)
    arbiter.go_on.set()
    world.log.dies = "after"

    await world.host(arbiter).drain()

    assert world.heard.subjects == ["a"]
    assert await world.forgotten() == ["begun a", "done a"]


async def test_long_work_that_fails_is_buried_and_can_be_replayed(world):
    (bad,) = await world.delete("bad")
    arbiter = type("LongEcho", (Echo,), {"batch": 1})(world.heard, always("bad"))
    host = world.host(arbiter)
    await host.drain()
    (letter,) = await host.dead_letters()
    assert letter.attempts == 5
    arbiter.stumble = lambda _: None

    await host.replay(bad.id)

    assert await host.dead_letters() == []
    assert await world.forgotten() == ["bad"]


async def test_an_arbiter_that_has_heard_more_than_there_is_says_that_the_log_lost_its_end(world):
    await world.delete("a")
    await world.echo().drain()
    world.log = MemoryEventLog()

    with pytest.raises(CorruptError, match=r"ends at offset 0, echo has handled it up to 1"):
        await world.echo().drain()
