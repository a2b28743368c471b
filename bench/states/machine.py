"""The rules by which histories of the bus are made, and the model that says what must be so."""

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from arbiters.envelope import Envelope
from arbiters.errors import InvalidError, SomaError
from arbiters.events import ConversationDeleted
from arbiters.kernel import host as kernel
from arbiters.kernel.bus import Publisher
from arbiters.testing import FakeClock, SequentialIds
from bench.states.parts import PLACES, DeathError, Listener, Place, Subscriber, Teller
from soma_agents.storage.event_log import SqliteEventLog

KEYS = ("red", "blue")
kinds = st.sampled_from(("teller", "listener"))
keys = st.sampled_from(KEYS)
numbers = st.integers(0, 1000)


def patiently(runs: int, steps: int) -> settings:
    """Settings for so many histories of so many steps, however long each takes."""
    return settings(
        max_examples=runs, stateful_step_count=steps, deadline=None, database=None, print_blob=False
    )


class Bus(RuleBasedStateMachine):
    """A log, two subscribers, and a model: what was published, erased, poisoned and replayed."""

    def __init__(self) -> None:
        super().__init__()
        kernel.RETRY_SECONDS = (0.0,) * kernel.MAX_ATTEMPTS
        memory = Path("/dev/shm")  # noqa: S108 - only as the parent of a temporary directory
        self.home = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.clock, self.ids = FakeClock(), SequentialIds()
        self.published: list[Envelope] = []
        self.erased: set[str] = set()
        self.replayed: set[tuple[str, str]] = set()
        self.runner = asyncio.Runner()
        self.log: SqliteEventLog = self.run(SqliteEventLog.open(self.home / "events.db"))
        self.subscribers: dict[str, Subscriber] = {
            kind.name: self.run(Subscriber.born(kind, self.home, self.log, self.clock, self.ids))
            for kind in (Teller, Listener)
        }

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run to the end."""
        return self.runner.run(work)

    # --- publishing ------------------------------------------------------------------------

    def fresh(self, key: str, **changes: str) -> Envelope:
        """An envelope that nobody has seen."""
        publisher = Publisher(log=self.log, clock=self.clock, ids=self.ids, producer="test")
        envelope = publisher.wrap(ConversationDeleted(conversation=key))
        return envelope._replace(**changes)

    @rule(some=st.lists(keys, min_size=1, max_size=5))
    def publish(self, some: list[str]) -> None:
        """One or several, as one group: at the end, in order, without a gap."""
        group = [self.fresh(key) for key in some]
        end = self.run(self.log.end())
        assert self.run(self.log.append(group)) == [end + n + 1 for n in range(len(group))]
        self.published += group

    @precondition(lambda self: self.published)
    @rule(which=numbers, key=keys)
    def publish_again(self, which: int, key: str) -> None:
        """A known key is dropped, whatever id it comes under, and its first offset told."""
        old = self.published[which % len(self.published)]
        place = self.run(self.log.find(old.id)).offset
        again = self.fresh(key, idempotency=old.idempotency)
        new = self.fresh(key)
        end = self.run(self.log.end())
        assert self.run(self.log.append([old, again, new, again])) == [place, place, end + 1, place]
        self.published.append(new)

    @precondition(lambda self: self.published)
    @rule(which=numbers)
    def publish_under_anothers_id(self, which: int) -> None:
        """It is refused; what is appended at the same time by others is not."""
        before, after = self.fresh("red"), self.fresh("blue")
        wrong = self.fresh("red", id=self.published[which % len(self.published)].id)
        told = self.run(_together(*(self.log.append([e]) for e in (before, wrong, after))))
        assert [isinstance(each, InvalidError) for each in told] == [False, True, False], told
        self.published += [before, after]

    @precondition(lambda self: self.published)
    @rule(which=numbers)
    def erase(self, which: int) -> None:
        """Nobody hears it any more who has not yet."""
        event = self.published[which % len(self.published)].id
        assert self.run(self.log.erase([event, "unknown"])) == (event not in self.erased)
        self.erased.add(event)

    # --- hearing, dying, stumbling ---------------------------------------------------------

    @rule(who=kinds, everything=st.booleans())
    def hear(self, who: str, everything: bool) -> None:
        """A batch, or all there is."""
        host = self.subscribers[who].host
        self.run(host.drain() if everything else host.step(wait=0))
        if everything:
            assert self.run(host._ledger.outbox()) == []  # noqa: SLF001

    @rule(who=kinds, place=st.sampled_from(PLACES), late=st.booleans(), reopened=st.booleans())
    def die(self, who: str, place: Place, late: bool, reopened: bool) -> None:
        """Die somewhere in a batch, perhaps in the last there is, and live again."""
        if late:
            self.hear(who, everything=True)
        self.publish(["red"])
        subscriber = self.subscribers[who]
        subscriber.fate.dies = place
        with suppress(DeathError):
            self.run(subscriber.host.step(wait=0))
        subscriber.fate.dies = None
        self.run(self.rise(subscriber, reopened=reopened))

    @precondition(lambda self: self.published)
    @rule(who=kinds, which=numbers)
    def poison(self, who: str, which: int) -> None:
        """From now on it cannot be heard."""
        event = self.published[which % len(self.published)].id
        self.subscribers[who].fate.poison.add(event)

    @rule(who=kinds)
    def heal(self, who: str) -> None:
        """Whatever could not be heard can be."""
        self.subscribers[who].fate.poison.clear()

    @rule(who=kinds, which=numbers)
    def replay(self, who: str, which: int) -> None:
        """A dead letter is heard, or stays one."""
        subscriber = self.subscribers[who]
        letters = self.run(subscriber.host.dead_letters())
        if not letters:
            return
        event = letters[which % len(letters)].envelope.id
        if event in subscriber.fate.poison:
            with suppress(SomaError):
                self.run(subscriber.host.replay(event))
                raise AssertionError(f"{event} is poison and was replayed")
            assert len(self.run(subscriber.host.dead_letters())) == len(letters)
            return
        self.run(subscriber.host.replay(event))
        self.replayed.add((who, event))

    # --- cancelling, restarting ------------------------------------------------------------

    @rule(who=kinds, turns=st.integers(0, 60))
    def cancel_hearing(self, who: str, turns: int) -> None:
        """Break off a batch anywhere; the subscriber starts anew."""
        subscriber = self.subscribers[who]
        self.run(_break_off(subscriber.host.step(wait=0), turns))
        assert not subscriber.database._connection.in_transaction  # noqa: SLF001
        self.run(self.rise(subscriber, reopened=False))

    @rule(some=st.lists(keys, min_size=1, max_size=5), turns=st.integers(0, 30))
    def cancel_publishing(self, some: list[str], turns: int) -> None:
        """Break off a publisher anywhere: all of its group is there, or nothing."""
        group = [self.fresh(key) for key in some]
        self.run(_break_off(self.log.append(group), turns))
        self.run(self.restart_log())
        there = [self.run(self.log.find(envelope.id)) is not None for envelope in group]
        assert len(set(there)) == 1
        assert not self.log._database._connection.in_transaction  # noqa: SLF001
        self.published += group if there[0] else []

    @rule()
    def restart(self) -> None:
        """Everything is closed and opened again."""
        self.run(self.restart_log())

    async def restart_log(self) -> None:
        """Close the log once all that waits is written, and open it."""
        await self.log.close()
        self.log = await SqliteEventLog.open(self.home / "events.db")
        for subscriber in self.subscribers.values():
            await self.rise(subscriber, reopened=False)

    async def rise(self, subscriber: Subscriber, *, reopened: bool) -> None:
        """A new host over the subscriber's file."""
        await subscriber.live(self.log, self.clock, self.ids, reopened=reopened)
        await subscriber.host._load()  # noqa: SLF001

    # --- what must be so -------------------------------------------------------------------

    @invariant()
    def the_chain_holds(self) -> None:
        """No gap, nothing rewritten."""
        assert self.run(self.log.verify()) == self.run(self.log.end())

    @invariant()
    def what_was_heard_was_heard_once_and_in_order(self) -> None:
        """But for dead letters, which are heard when they are replayed."""
        self.run(self._look())

    async def _look(self) -> dict[str, list[str]]:
        everything = await self.log._rows(0)  # noqa: SLF001
        offsets = {row[1]: row[0] for row in everything}
        heard: dict[str, list[str]] = {}
        for name, subscriber in self.subscribers.items():
            heard[name] = effects = await subscriber.effects()
            assert max(Counter(effects).values(), default=1) == 1, (name, effects)
            in_order = [offsets[e] for e in effects if (name, e) not in self.replayed]
            assert in_order == sorted(in_order), (name, effects)
            for letter in await subscriber.host.dead_letters():
                tries = subscriber.fate.tries[letter.envelope.id]
                assert letter.attempts >= tries == kernel.MAX_ATTEMPTS, (name, letter, tries)
                assert letter.envelope.id not in effects
        return heard

    def teardown(self) -> None:
        """Let everybody hear everything; then compare with the model."""
        try:
            self.run(self._settle())
            self.run(self._compare())
        finally:
            self.run(self._close())
            self.runner.close()
            shutil.rmtree(self.home)

    async def _settle(self) -> None:
        end = -1
        while end != (end := await self.log.end()):
            for subscriber in self.subscribers.values():
                await subscriber.host.drain()

    async def _compare(self) -> None:
        heard = await self._look()
        events = [row[1:] for row in await self.log._rows(0)]  # noqa: SLF001
        said = [event[0] for event in events if event[1] == "ConversationDeleted"]
        assert said == [envelope.id for envelope in self.published]
        told = [event[8] for event in events if event[1] == "FactForgotten"]
        assert sorted(told) == sorted(heard["teller"])
        passed_on = [event[0] for event in events if event[1] == "FactForgotten"]
        await self._compare_one("teller", said, heard["teller"])
        await self._compare_one("listener", said + passed_on, heard["listener"])

    async def _compare_one(self, name: str, all_: Sequence[str], heard: Sequence[str]) -> None:
        """Everything was heard or buried, unless it was erased before."""
        host = self.subscribers[name].host
        buried = {letter.envelope.id for letter in await host.dead_letters()}
        assert set(all_) - self.erased <= {*heard, *buried} <= set(all_), name
        assert await host._ledger.outbox() == []  # noqa: SLF001

    async def _close(self) -> None:
        await self.log.close()
        for subscriber in self.subscribers.values():
            await subscriber.database.close()


async def _together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """All at once: each one's result, or what it raised."""
    tasks = [asyncio.ensure_future(each) for each in work]
    await asyncio.wait(tasks)
    return [task.exception() or task.result() for task in tasks]


async def _break_off(work: Coroutine[Any, Any, Any], turns: int) -> None:
    """Cancel after so many turns of the event loop."""
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
