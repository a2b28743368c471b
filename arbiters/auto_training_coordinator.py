"""AutoTrainingCoordinator: starts rounds and leads each through to its end."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from arbiters.envelope import Envelope
from arbiters.events import (
    ArbiterFailed,
    ClockTicked,
    ConversationImported,
    Event,
    MessageReceived,
    ReplyGiven,
)
from arbiters.kernel.arbiter import Arbiter, Said, on, query
from arbiters.model_events import (
    CanaryStarted,
    DatasetExported,
    DatasetRefused,
    EvaluationFinished,
    RequestRefused,
    RoundFinished,
    RoundRequested,
    RoundStarted,
    TrainingFailed,
    TrainingFinished,
    TrainingProgressed,
    TrainingRequested,
)
from arbiters.ports import Clock
from arbiters.records import RoundState
from arbiters.stores import RoundStore
from policies.training import Due, NotDue, TrainingFacts, is_due

STEPS = frozenset(
    {
        "RoundStarted",
        "DatasetExported",
        "DatasetRefused",
        "TrainingRequested",
        "TrainingFinished",
        "TrainingFailed",
        "ComparisonRequested",
        "ComparisonFinished",
        "ComparisonFailed",
        "EvaluationFinished",
    }
)
"""Events without whose handling a round would never end."""

Verdict = Literal["promoted", "rejected", "held", "failed"]


def round_of(cause: str) -> str:
    """The id of the round that the event with id `cause` starts, if it starts one."""
    return f"round-{cause}"


class AutoTrainingCoordinator(Arbiter):
    """Counts what comes in, starts a round when it is due, and knows where the round is.

    One round runs at a time. A step that comes late, twice or for another round changes nothing.
    """

    name: ClassVar[str] = "auto_training_coordinator"

    def __init__(
        self, *, rounds: RoundStore, clock: Clock, base: str, min_new_messages: int
    ) -> None:
        self._rounds = rounds
        self._clock = clock
        self._base = base
        self._min_new_messages = min_new_messages

    # --- counting --------------------------------------------------------------------------

    @on(MessageReceived, ReplyGiven)
    async def count_turn(self, _: MessageReceived | ReplyGiven, envelope: Envelope) -> Said:
        """One more."""
        for said in await self._count(1, envelope):
            yield said

    @on(ConversationImported)
    async def count_import(self, event: ConversationImported, envelope: Envelope) -> Said:
        """Every message of it, unless it is held out of training."""
        if not event.held_out:
            for said in await self._count(len(event.messages), envelope):
                yield said

    async def _count(self, messages: int, envelope: Envelope) -> list[Event]:
        await self._rounds.count(envelope.offset, messages)
        return await self._start_if_due(envelope)

    # --- starting --------------------------------------------------------------------------

    @on(RoundRequested)
    async def request(self, event: RoundRequested, envelope: Envelope) -> Said:
        """A person or the schedule wants a round."""
        decision = await self._is_due(event.by)
        if isinstance(decision, Due):
            yield await self._start(decision.because, envelope)
        else:
            yield RequestRefused(because=decision.because)

    @on(ClockTicked)
    async def tick(self, _: ClockTicked, envelope: Envelope) -> Said:
        """What came while a round was running may be enough for the next."""
        for said in await self._start_if_due(envelope):
            yield said

    async def _start_if_due(self, envelope: Envelope) -> list[Event]:
        decision = await self._is_due(None)
        return [await self._start(decision.because, envelope)] if isinstance(decision, Due) else []

    async def _is_due(self, requested: Literal["user", "schedule"] | None) -> Due | NotDue:
        running = await self._rounds.current()
        facts = TrainingFacts(
            new_messages=await self._new_messages(),
            running=running.id if running else None,
            requested=requested,
        )
        return is_due(facts, min_new_messages=self._min_new_messages)

    async def _new_messages(self) -> int:
        latest = await self._rounds.latest()
        return await self._rounds.messages_since(latest.upto if latest else 0)

    async def _start(self, because: str, envelope: Envelope) -> RoundStarted:
        new_messages = await self._new_messages()
        state = RoundState(
            id=round_of(envelope.id),
            step="exporting",
            started_at=self._clock.now(),
            upto=envelope.offset,
        )
        await self._rounds.save(state)
        return RoundStarted(
            round=state.id, because=because, upto=state.upto, new_messages=new_messages
        )

    # --- leading ---------------------------------------------------------------------------

    @on(DatasetExported)
    async def have_trained(self, event: DatasetExported, _: Envelope) -> Said:
        """The material is there."""
        state = await self._at(event.round, "exporting")
        if state is not None:
            await self._rounds.save(replace(state, step="training"))
            yield TrainingRequested(
                round=event.round, dataset=event.dataset, path=event.path, parent=self._base
            )

    @on(TrainingProgressed)
    async def note_progress(self, event: TrainingProgressed, _: Envelope) -> None:
        """So far."""
        state = await self._at(event.round, "training")
        if state is not None:
            await self._rounds.save(replace(state, progress=event.step / event.steps))

    @on(TrainingFinished)
    async def have_evaluated(self, event: TrainingFinished, _: Envelope) -> None:
        """The evaluation has heard it as well and goes on."""
        state = await self._at(event.round, "training")
        if state is not None:
            await self._rounds.save(replace(state, step="evaluating", progress=0.0))

    @on(CanaryStarted)
    async def note_canary(self, event: CanaryStarted, _: Envelope) -> None:
        """The candidate is tried in use; that may take days."""
        state = await self._at(event.round, "evaluating")
        if state is not None:
            await self._rounds.save(replace(state, step="canary"))

    # --- ending ----------------------------------------------------------------------------

    @on(EvaluationFinished)
    async def conclude(self, event: EvaluationFinished, _: Envelope) -> Said:
        """There is a verdict."""
        for said in await self._finish(event.round, event.verdict, event.because):
            yield said

    @on(DatasetRefused)
    async def give_up_without_material(self, event: DatasetRefused, _: Envelope) -> Said:
        """Too little to learn from."""
        for said in await self._finish(event.round, "failed", event.because):
            yield said

    @on(TrainingFailed)
    async def give_up_training(self, event: TrainingFailed, _: Envelope) -> Said:
        """The trainer said why."""
        if await self._at(event.round, "training") is not None:
            for said in await self._finish(event.round, "failed", event.because):
                yield said

    @on(ArbiterFailed)
    async def give_up_stuck(self, event: ArbiterFailed, _: Envelope) -> Said:
        """A step of the round ended among the dead letters: nobody will go on with it."""
        if event.event_type in STEPS:
            because = (
                f"{event.arbiter} could not handle {event.event_type} in {event.attempts} attempts: "
                f"{event.error}; see 'soma dead-letters'"
            )
            for said in await self._finish(event.key, "failed", because):
                yield said

    async def _finish(self, round_: str, verdict: Verdict, because: str) -> list[Event]:
        state = await self._at(round_)
        if state is None:
            return []
        now = self._clock.now()
        await self._rounds.save(
            replace(
                state,
                step="finished",
                progress=1.0,
                verdict=verdict,
                because=because,
                finished_at=now,
            )
        )
        seconds = max(0.0, (now - state.started_at).total_seconds())  # the clock may be set back
        return [RoundFinished(round=round_, verdict=verdict, because=because, seconds=seconds)]

    async def _at(self, round_: str, step: str | None = None) -> RoundState | None:
        """The running round if it is this one, and at this step."""
        state = await self._rounds.current()
        if state is None or state.id != round_ or step not in (None, state.step):
            return None
        return state

    # --- questions -------------------------------------------------------------------------

    @query
    async def status(self) -> dict[str, Any]:
        """The running round (id, step, progress in [0, 1]) or None, and whether one is due."""
        running = await self._rounds.current()
        due = await self._is_due(None)
        return {
            "round": {"id": running.id, "step": running.step, "progress": running.progress}
            if running
            else None,
            "new_messages": await self._new_messages(),
            "min_new_messages": self._min_new_messages,
            "because": due.because,
        }

    @query
    async def rounds(self, limit: int = 50) -> list[RoundState]:
        """Newest first."""
        return await self._rounds.rounds(limit=limit)

    @query
    async def statistics(self) -> dict[str, Any]:
        """`status`, with all messages ever counted and the last 1,000 rounds by verdict."""
        rounds = await self._rounds.rounds(limit=1000)
        verdicts = [state.verdict for state in rounds if state.verdict]
        return {
            **await self.status(),
            "messages": await self._rounds.messages_since(0),
            "rounds": len(rounds),
            "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        }
