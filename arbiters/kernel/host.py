"""Driving an arbiter: pull after the cursor, handle, commit, publish; again after any crash."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any

from arbiters.envelope import Envelope, decode
from arbiters.errors import (
    BusyError,
    CorruptError,
    NotFoundError,
    SomaError,
    StorageFullError,
    UnavailableError,
)
from arbiters.events import ArbiterFailed, Event
from arbiters.kernel.arbiter import Arbiter, Said
from arbiters.kernel.bus import Publisher
from arbiters.ports import Clock, EventLog, Ids
from arbiters.records import DeadLetter
from arbiters.stores import Ledger

MAX_ATTEMPTS = 5
POLL_SECONDS = 5.0
REST_SECONDS, LONGEST_REST_SECONDS = 50e-6, 0.05
"""After a batch, for each of its events: the more come, the more are better taken together."""
SHORTEST_REST_SECONDS = 0.005
"""Each batch costs a call and a transaction, however few events it has."""
RETRY_SECONDS = (0.0, 0.1, 0.5, 2.0, 5.0)
NOT_NOW = (StorageFullError, UnavailableError, BusyError)
"""Failures of the log or the disk that pass."""
APPEND_SECONDS = 60.0
"""For the log to take what was said; longer, and it counts as away."""
NOT_THE_EVENT = (StorageFullError, CorruptError)
"""Failures that no other event would fare better with."""


class Host:
    """Runs one arbiter over the log.

    State, cursor and outbox are committed together; then the outbox is published under the keys
    (arbiter, cause, index), which the log knows again. So: heard at least once, effective once.
    """

    def __init__(
        self, arbiter: Arbiter, *, log: EventLog, ledger: Ledger, clock: Clock, ids: Ids
    ) -> None:
        self.arbiter = arbiter
        self._log = log
        self._ledger = ledger
        self._clock = clock
        self._publisher = Publisher(log=log, clock=clock, ids=ids, producer=arbiter.name)
        self._queries = arbiter.queries()
        self._types = frozenset(arbiter.handlers())
        self._cursor = 0
        self._moved = asyncio.Condition()
        self._unsent = True
        self._broken_off: int | None = None
        self._agreed = False

    # --- running ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Handle what comes, until cancelled: at once while waiting, else after the commit.

        A full disk and a log that is away or has no room are waited out.

        Raises:
            CorruptError: the log or the arbiter's database is damaged.
        """
        await self._load()
        while True:
            try:
                heard = await self.step(wait=POLL_SECONDS)
                if 0 < heard < self.arbiter.batch:
                    await asyncio.sleep(_rest(heard))
            except NOT_NOW as error:
                await _wait_out(error)

    async def drain(self) -> None:
        """Handle everything there is now, and everything that follows from it; for tests."""
        await self._load()
        while await self.step(wait=0):
            pass

    async def step(self, *, wait: float) -> int:
        """Pull and handle one batch; how many events it had."""
        await self._agree()
        await self._flush()
        batch = await self._log.read(
            self._cursor, limit=self.arbiter.batch, types=self._types, wait=wait
        )
        if batch.envelopes:
            await self._finish(self._handle(batch.envelopes))
        await self._at(batch.end)
        return len(batch.envelopes)

    async def _load(self) -> None:
        self._cursor = await self._ledger.cursor()
        self._unsent = True

    async def _agree(self) -> None:
        """See once that this is the log which the cursor is from, and all of it.

        Raises:
            CorruptError: the log ends before what was handled already.
        """
        if not self._agreed and (end := await self._log.end()) < self._cursor:
            raise CorruptError(
                f"the event log ends at offset {end}, {self.arbiter.name} has handled it up to "
                f"{self._cursor}: it lost its end; restore it from a backup"
            )
        self._agreed = True

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work` to its end even when cancelled, unless it is a long one.

        A long handler is outside any transaction and can be done again: it stops at once.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if self.arbiter.batch == 1:
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # seen: after the restart the same batch is handled again
            raise

    # --- handling --------------------------------------------------------------------------

    async def _handle(self, envelopes: Sequence[Envelope]) -> None:
        counted = await self._attempt(envelopes[0])
        if len(envelopes) > 1 and counted == 0:
            try:
                await self._commit(envelopes)
            except NOT_THE_EVENT:
                self._broken_off = envelopes[0].offset
                raise
            except Exception:  # noqa: BLE001 - found again below, one by one
                counted = await self._attempt(envelopes[0])
            else:
                await self._publish(envelopes[-1].offset)
                return
        for envelope in envelopes:
            attempts = counted if envelope is envelopes[0] else await self._attempt(envelope)
            await self._handle_one(envelope, attempts)
            await self._publish(envelope.offset)

    async def _handle_one(self, envelope: Envelope, attempts: int) -> None:
        """Try until it is heard or buried; `attempts` were made before this one."""
        error = "the process died while handling it"
        while attempts < MAX_ATTEMPTS:
            try:
                await self._commit([envelope])
            except NOT_THE_EVENT:
                self._broken_off = envelope.offset
                raise
            except Exception as failure:  # noqa: BLE001 - becomes a dead letter and an event
                error = f"{type(failure).__name__}: {failure}"
                attempts = await self._attempt(envelope)
            else:
                return
        await self._bury(envelope, MAX_ATTEMPTS, error)

    async def _attempt(self, envelope: Envelope) -> int:
        """Count an attempt before it is made: the handler may take the process with it.

        One that was broken off for reasons that lie outside the event does not count, nor does a
        death in the wait before the next: a process that dies for other reasons, again and again,
        would have what is innocent buried.
        """
        if self._broken_off == envelope.offset:
            await self._ledger.forgive(envelope.offset)
            self._broken_off = None
        before = await self._ledger.attempt(envelope.offset)
        if 0 < before < MAX_ATTEMPTS:
            await self._ledger.forgive(envelope.offset)
            await asyncio.sleep(RETRY_SECONDS[before])
            await self._ledger.attempt(envelope.offset)
        return before

    async def _commit(self, envelopes: Sequence[Envelope], *, dug_up: bool = False) -> None:
        """Handle in one transaction. What is dug up leaves the dead letters in the same one."""
        if self.arbiter.batch == 1:
            await self._perform(envelopes[0])
        async with self._in_time(), self._ledger.transaction():
            said = list[Envelope]()
            for envelope in envelopes if self.arbiter.batch > 1 else ():
                for index, event in enumerate(await self.arbiter.react(decode(envelope), envelope)):
                    said.append(self._wrap(event, envelope, index))
            self._unsent = self._unsent or bool(said)
            await self._ledger.advance(envelopes[-1].offset, said)
            if dug_up:
                await self._ledger.exhume(envelopes[-1].id)

    async def _perform(self, envelope: Envelope) -> None:
        """Handle a long piece of work outside any transaction, publishing as it goes.

        Taken up again it may say less or other things than before, so its events are known by
        their content, not by their place.
        """
        try:
            async with aclosing(self.arbiter.hear(decode(envelope), envelope)) as said:
                while (event := await self._next(said)) is not None:
                    content = sha256(event.model_dump_json().encode()).hexdigest()
                    await self._say(self._wrap(event, envelope, f"{event.type}/{content}"))
        except asyncio.CancelledError:
            await self._ledger.forgive(envelope.offset)
            raise

    async def _next(self, said: Said) -> Event | None:
        async with self._in_time():
            return await anext(said, None)

    @asynccontextmanager
    async def _in_time(self) -> AsyncGenerator[None]:
        """A handler that hangs is one that failed, so that it is tried again and at last buried."""
        limit = asyncio.timeout(self.arbiter.limit_s)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"no end within {self.arbiter.limit_s} seconds") from error

    async def _say(self, said: Envelope) -> None:
        """Append, however long the log is away: hours of work hang on it."""
        while True:
            try:
                await self._append([said])
            except NOT_NOW as error:
                await _wait_out(error)
            else:
                return

    def _wrap(self, event: Event, cause: Envelope, which: int | str) -> Envelope:
        key = f"{self.arbiter.name}/{cause.id}/{which}"
        return self._publisher.wrap(event, cause=cause, idempotency=key)

    async def _bury(self, envelope: Envelope, attempts: int, error: str) -> None:
        failed = ArbiterFailed(
            arbiter=self.arbiter.name,
            event=envelope.id,
            event_type=envelope.type,
            key=envelope.key,
            attempts=attempts,
            error=error,
        )
        key = f"{self.arbiter.name}/{envelope.id}/failed"
        said = self._publisher.wrap(failed, cause=envelope, idempotency=key)
        letter = DeadLetter(envelope=envelope, attempts=attempts, error=error, at=self._clock.now())
        self._unsent = True
        async with self._ledger.transaction():
            await self._ledger.bury(letter)
            await self._ledger.advance(envelope.offset, [said])

    # --- publishing ------------------------------------------------------------------------

    async def _publish(self, offset: int) -> None:
        """What was committed up to `offset` goes out; whatever fails now is not done again."""
        await self._at(offset)
        await self._flush()

    async def _flush(self) -> None:
        """Send what an earlier commit, perhaps of an earlier life, left in the outbox."""
        if not self._unsent:
            return
        waiting = await self._ledger.outbox()
        if waiting:
            await self._append(waiting)
            await self._ledger.sent(waiting)
        self._unsent = False

    async def _append(self, said: Sequence[Envelope]) -> None:
        """Have the log take it; again after a doubt, since it knows the keys.

        Raises:
            UnavailableError: the log did not answer in time.
        """
        try:
            async with asyncio.timeout(APPEND_SECONDS):
                await self._log.append(said)
        except TimeoutError:
            raise UnavailableError(
                f"the log took nothing for {APPEND_SECONDS:g} seconds; see its disk or server"
            ) from None

    async def _at(self, offset: int) -> None:
        async with self._moved:
            self._cursor = max(self._cursor, offset)
            self._moved.notify_all()

    # --- asking ----------------------------------------------------------------------------

    async def ask(
        self, question: str, arguments: dict[str, Any], *, at_least: int = 0, patience: float = 10.0
    ) -> Any:
        """Put a question to the arbiter once it has seen offset `at_least`.

        Raises:
            NotFoundError: the arbiter has no such question.
            UnavailableError: it did not get that far in `patience` seconds.
        """
        if question not in self._queries:
            raise NotFoundError(f"{self.arbiter.name} has no question {question!r}")
        try:
            async with asyncio.timeout(patience):
                await self._reach(at_least)
        except TimeoutError:
            raise UnavailableError(
                f"{self.arbiter.name} is at offset {self._cursor}, not yet at {at_least}; ask again"
            ) from None
        return await getattr(self.arbiter, question)(**arguments)

    async def _reach(self, offset: int) -> None:
        """Wait until everything of concern up to `offset` is handled.

        The log does not wake an arbiter for what does not concern it: look whether that is all.
        """
        while (cursor := self._cursor) < offset:
            ahead = await self._log.read(cursor, limit=1, types=self._types)
            if not ahead.envelopes:
                await self._at(ahead.end)
            async with self._moved:
                await self._moved.wait_for(lambda: self._cursor > cursor)

    async def dead_letters(self) -> list[DeadLetter]:
        """What this arbiter could not handle."""
        return await self._ledger.dead_letters()

    async def replay(self, event: str) -> None:
        """Try a dead letter again.

        Raises:
            NotFoundError: there is no such dead letter.
            SomaError: it failed again; it is back among the dead letters.
        """
        letters = await self._ledger.dead_letters()
        letter = next((letter for letter in letters if letter.envelope.id == event), None)
        if letter is None:
            raise NotFoundError(f"{self.arbiter.name} has no dead letter {event!r}")
        try:
            await self._commit([letter.envelope], dug_up=True)
        except NOT_THE_EVENT:
            raise
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
            await self._ledger.bury(replace(letter, attempts=letter.attempts + 1, error=error))
            raise SomaError(
                f"event {event} failed again in {self.arbiter.name}: {error}"
            ) from failure
        await self._flush()


def _rest(heard: int) -> float:
    return min(max(heard * REST_SECONDS, SHORTEST_REST_SECONDS), LONGEST_REST_SECONDS)


async def _wait_out(error: SomaError) -> None:
    seconds = error.retry_after if isinstance(error, BusyError) else POLL_SECONDS
    await asyncio.sleep(min(seconds, POLL_SECONDS))
