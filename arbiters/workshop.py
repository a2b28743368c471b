"""Workshop: does the long work of a round, one piece after the other."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

from arbiters.envelope import Envelope
from arbiters.events import Event
from arbiters.kernel.arbiter import Arbiter, Said, on
from arbiters.model_events import (
    ComparisonFailed,
    ComparisonRequested,
    TrainingFailed,
    TrainingProgressed,
    TrainingRequested,
)
from arbiters.ports import Examiner, Trainer


class _SilentError(Exception):
    """A training says nothing any more."""


class Workshop(Arbiter):
    """Trains and compares on request; decides nothing.

    What trainer and examiner expect to go wrong they say themselves. Anything else is raised, tried
    again by the host (a trainer resumes from its checkpoint) and at last ends as `ArbiterFailed`,
    upon which the coordinator gives up the round. One that hangs is ended and has failed at once:
    what hung for so long would hang again.
    """

    name: ClassVar[str] = "workshop"
    batch: ClassVar[int] = 1
    limit_s: ClassVar[float | None] = None

    def __init__(
        self, *, trainer: Trainer, examiner: Examiner, silence_s: float, comparison_s: float
    ) -> None:
        """A training may be silent, and a comparison may last, for so many seconds."""
        self._trainer = trainer
        self._examiner = examiner
        self._silence_s = silence_s
        self._comparison_s = comparison_s

    @on(TrainingRequested)
    async def train(self, event: TrainingRequested, _: Envelope) -> Said:
        """Train a candidate and pass on how it goes."""
        because = "the trainer stopped without a result"
        training = self._trainer.train(event)
        said: Event | None = None
        try:
            while (new := await self._next(training)) is not None:
                said = new
                yield said
        except _SilentError:
            because = f"the training said nothing for {self._silence_s:g} seconds and was ended"
        if said is None or isinstance(said, TrainingProgressed):
            yield TrainingFailed(round=event.round, because=because)

    async def _next(self, training: AsyncIterator[Event]) -> Event | None:
        """What the training says next, None at its end.

        Raises:
            _SilentError: it says nothing; it is ended by then.
        """
        limit = asyncio.timeout(self._silence_s)
        try:
            async with limit:
                return await anext(training, None)
        except TimeoutError:
            if limit.expired():
                raise _SilentError from None
            raise

    @on(ComparisonRequested)
    async def compare(self, event: ComparisonRequested, _: Envelope) -> Said:
        """Replay the held-out material through both models."""
        limit = asyncio.timeout(self._comparison_s)
        try:
            async with limit:
                said = await self._examiner.compare(event)
        except TimeoutError:
            if not limit.expired():
                raise
            said = ComparisonFailed(
                round=event.round,
                experiment=event.experiment,
                candidate=event.candidate,
                because=f"the comparison was not over within {self._comparison_s:g} seconds",
            )
        yield said
