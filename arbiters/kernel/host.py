"""Driving an arbiter: pull after the cursor, handle, commit, publish; again after any crash."""

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from arbiters.errors import NotFoundError, SomaError, UnavailableError
from arbiters.events import ArbiterFailed, Envelope, Event, decode
from arbiters.kernel.arbiter import Arbiter, Said
from arbiters.kernel.bus import Publisher
from arbiters.ports import Clock, DeadLetter, EventLog, Ids, Ledger

MAX_ATTEMPTS = 5
POLL_SECONDS = 5.0
RETRY_SECONDS = (0.0, 0.1, 0.5, 2.0, 5.0)


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

    # --- running ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Handle what comes, until cancelled. A transaction under way is finished first."""
        await self._load()
        while True:
            await self._whole(self.step(wait=POLL_SECONDS))

    async def drain(self) -> None:
        """Handle everything there is now, and everything that follows from it; for tests."""
        await self._load()
        while await self.step(wait=0):
            pass

    async def step(self, *, wait: float) -> bool:
        """Pull and handle one batch; whether there was something."""
        batch = await self._log.read(
            self._cursor, limit=self.arbiter.batch, types=self._types, wait=wait
        )
        if batch.envelopes:
            await self._handle(batch.envelopes)
        await self._at(batch.end)
        return bool(batch.envelopes)

    async def _load(self) -> None:
        self._cursor = await self._ledger.cursor()
        await self._flush()

    @staticmethod
    async def _whole(work: Any) -> None:
        """Await `work` to its end even when cancelled: no transaction stays half open."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            # Only a wait for news may be cut short; a batch being handled runs to its commit.
            await asyncio.wait([task], timeout=POLL_SECONDS + 1)
            raise

    # --- handling --------------------------------------------------------------------------

    async def _handle(self, envelopes: Sequence[Envelope]) -> None:
        if len(envelopes) > 1 and await self._ledger.attempt(envelopes[0].offset) == 0:
            try:
                await self._commit(envelopes)
            except Exception:  # noqa: BLE001, S110 - found again below, one by one
                pass
            else:
                return
        for envelope in envelopes:
            await self._handle_one(envelope)

    async def _handle_one(self, envelope: Envelope) -> None:
        error = "the process died while handling it"
        while (attempts := await self._ledger.attempt(envelope.offset)) < MAX_ATTEMPTS:
            await asyncio.sleep(RETRY_SECONDS[attempts])
            try:
                await self._commit([envelope])
            except Exception as failure:  # noqa: BLE001 - becomes a dead letter and an event
                error = f"{type(failure).__name__}: {failure}"
            else:
                return
        await self._bury(envelope, MAX_ATTEMPTS, error)

    async def _commit(self, envelopes: Sequence[Envelope]) -> None:
        if self.arbiter.batch == 1:
            await self._perform(envelopes[0])
            return
        async with self._ledger.transaction():
            said: list[Envelope] = []
            for envelope in envelopes:
                index = 0
                async for event in self._hear(envelope):
                    said.append(self._wrap(event, envelope, index))
                    index += 1
            await self._ledger.advance(envelopes[-1].offset, said)
        await self._flush()
        await self._at(envelopes[-1].offset)

    async def _perform(self, envelope: Envelope) -> None:
        """Handle a long piece of work outside any transaction, publishing as it goes.

        Taken up again it may say less or other things than before, so its events are known by
        their content, not by their place.
        """
        async for event in self._hear(envelope):
            content = sha256(event.model_dump_json().encode()).hexdigest()
            await self._log.append([self._wrap(event, envelope, f"{event.type}/{content}")])
        async with self._ledger.transaction():
            await self._ledger.advance(envelope.offset, [])
        await self._at(envelope.offset)

    def _hear(self, envelope: Envelope) -> Said:
        return self.arbiter.hear(decode(envelope), envelope)

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
        letter = DeadLetter(envelope=envelope, attempts=attempts, error=error, at=self._clock.now())
        async with self._ledger.transaction():
            await self._ledger.bury(letter)
            await self._ledger.advance(
                envelope.offset,
                [
                    self._publisher.wrap(
                        failed,
                        cause=envelope,
                        idempotency=f"{self.arbiter.name}/{envelope.id}/failed",
                    )
                ],
            )
        await self._flush()
        await self._at(envelope.offset)

    async def _flush(self) -> None:
        waiting = await self._ledger.outbox()
        if waiting:
            await self._log.append(waiting)
            await self._ledger.sent(waiting)

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
            async with asyncio.timeout(patience), self._moved:
                await self._moved.wait_for(lambda: self._cursor >= at_least)
        except TimeoutError:
            raise UnavailableError(
                f"{self.arbiter.name} is at offset {self._cursor}, not yet at {at_least}; ask again"
            ) from None
        return await getattr(self.arbiter, question)(**arguments)

    async def dead_letters(self) -> list[DeadLetter]:
        """What this arbiter could not handle."""
        return await self._ledger.dead_letters()

    async def replay(self, event: str) -> None:
        """Try a dead letter again.

        Raises:
            NotFoundError: there is no such dead letter.
            SomaError: it failed again; it is back among the dead letters.
        """
        envelope = await self._ledger.exhume(event)
        if envelope is None:
            raise NotFoundError(f"{self.arbiter.name} has no dead letter {event!r}")
        try:
            await self._commit_out_of_order(envelope)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
            async with self._ledger.transaction():
                await self._ledger.bury(
                    DeadLetter(
                        envelope=envelope,
                        attempts=MAX_ATTEMPTS + 1,
                        error=error,
                        at=self._clock.now(),
                    )
                )
            raise SomaError(
                f"event {event} failed again in {self.arbiter.name}: {error}"
            ) from failure

    async def _commit_out_of_order(self, envelope: Envelope) -> None:
        async with self._ledger.transaction():
            said = [
                self._wrap(event, envelope, index)
                for index, event in enumerate([event async for event in self._hear(envelope)])
            ]
            await self._ledger.advance(self._cursor, said)
        await self._flush()
