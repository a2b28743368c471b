"""Workshop: does the long work of a round, one piece after the other."""

from typing import ClassVar

from arbiters.events import (
    ComparisonRequested,
    Envelope,
    TrainingFailed,
    TrainingProgressed,
    TrainingRequested,
)
from arbiters.kernel.arbiter import Arbiter, Said, on
from arbiters.ports import Examiner, Trainer


class Workshop(Arbiter):
    """Trains and compares on request; decides nothing.

    What trainer and examiner expect to go wrong they say themselves. Anything else is raised, tried
    again by the host (a trainer resumes from its checkpoint) and at last ends as `ArbiterFailed`,
    upon which the coordinator gives up the round.
    """

    name: ClassVar[str] = "workshop"
    batch: ClassVar[int] = 1

    def __init__(self, *, trainer: Trainer, examiner: Examiner) -> None:
        self._trainer = trainer
        self._examiner = examiner

    @on(TrainingRequested)
    async def train(self, event: TrainingRequested, _: Envelope) -> Said:
        """Train a candidate and pass on how it goes."""
        over = False
        async for said in self._trainer.train(event):
            over = not isinstance(said, TrainingProgressed)
            yield said
        if not over:
            yield TrainingFailed(round=event.round, because="the trainer stopped without a result")

    @on(ComparisonRequested)
    async def compare(self, event: ComparisonRequested, _: Envelope) -> Said:
        """Replay the held-out material through both models."""
        yield await self._examiner.compare(event)
