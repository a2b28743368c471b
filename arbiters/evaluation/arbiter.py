"""The evaluation's ears: what it does about each event."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from math import isfinite
from typing import Any, ClassVar

from arbiters.envelope import Envelope
from arbiters.evaluation.specialists import SpecialistRegistrar
from arbiters.evaluation.verdicts import Gate, experiment_of, metric
from arbiters.events import ClockTicked, Event, FeedbackGiven, ReplyGiven
from arbiters.kernel.arbiter import Said, on, query
from arbiters.model_events import (
    CandidateRegistered,
    ComparisonFailed,
    ComparisonFinished,
    ComparisonRequested,
    DatasetExported,
    ModelPromoted,
    PromotionRequested,
    RequestRefused,
    RollbackRequested,
    RoundFinished,
    RoundStarted,
    TrainingFinished,
)
from arbiters.ports import Clock
from arbiters.records import ExperimentState, ModelVersion, Pointer
from arbiters.stores import ExperimentStore, Registry
from policies.evaluation import Unmeasurable, paired
from policies.promotion import (
    Continue,
    LivePromote,
    LiveReject,
    Promote,
    PromotionRules,
    Reject,
    Verdict,
    judge,
    judge_canary,
    should_roll_back,
)


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that answers a share of the conversations."""

    experiment: str
    candidate: ModelVersion
    share: float


@dataclass(frozen=True, slots=True)
class Serving:
    """All that must be loaded to answer."""

    champion: ModelVersion
    previous: ModelVersion | None
    canary: Trial | None


class EvaluationArbiter(SpecialistRegistrar):
    """Weighs candidates and moves the champion pointer; nobody else does either.

    `rules` gives the rules for the n-th candidate ever. They are stored with the experiment before
    its first observation and read back from there for every decision about it.
    """

    name: ClassVar[str] = "evaluation"

    def __init__(
        self,
        *,
        registry: Registry,
        experiments: ExperimentStore,
        clock: Clock,
        rules: Callable[[int], PromotionRules],
    ) -> None:
        super().__init__(registry=registry, clock=clock)
        self._gate = Gate(registry=registry, experiments=experiments, clock=clock)
        self._experiments = experiments
        self._rules = rules

    # --- a candidate appears ---------------------------------------------------------------

    @on(RoundStarted)
    async def open(self, event: RoundStarted, _: Envelope) -> None:
        """Begin the round's receipt."""
        await self._experiments.save(
            ExperimentState(
                id=experiment_of(event.round),
                round=event.round,
                champion=(await self._registry.pointer()).champion,
                candidate="",
                ordinal=0,
                rules={},
                phase="offline",
                started_at=self._clock.now(),
            )
        )

    @on(DatasetExported)
    async def note_dataset(self, event: DatasetExported, _: Envelope) -> None:
        """Remember what there is to learn from."""
        state = await self._gate.unfinished(event.round)
        if state is not None:
            learnt = {
                "dataset": event.dataset,
                "path": event.path,
                "examples": {
                    "train": event.train,
                    "validation": event.validation,
                    "heldout": event.heldout,
                    "preferences": event.preferences,
                },
                "targets_by_kind": event.targets_by_kind,
            }
            await self._experiments.save(replace(state, offline={"learnt": learnt}))

    @on(TrainingFinished)
    async def register(self, event: TrainingFinished, _: Envelope) -> Said:
        """Give the candidate its name, store its rules, then have it compared."""
        state = await self._gate.unfinished(event.round)
        if state is None or state.candidate:
            return
        champion = await self._gate.known((await self._registry.pointer()).champion)
        learnt = state.offline["learnt"]
        base = champion.base or champion.id
        version = await self._registry.register(
            ModelVersion(
                id=event.model,
                name="",
                base=base,
                path=event.path,
                stage="candidate",
                dataset=learnt["dataset"],
                round=event.round,
                hyperparameters=event.hyperparameters,
                code_version=event.code_version,
                registered_at=self._clock.now(),
            )
        )
        yield CandidateRegistered(
            round=event.round,
            model=version.id,
            name=version.name,
            dataset=learnt["dataset"],
            base=base,
            path=version.path,
        )
        training = {"steps": event.steps, "tokens": event.tokens, "seconds": event.seconds}
        state = replace(
            state,
            champion=champion.id,
            candidate=version.id,
            offline={**state.offline, "training": training},
        )
        if version.id == champion.id:
            because = f"training gave {version.name} again, which is in service: nothing new"
            yield await self._gate.finish(state, "held", because)
            return
        ordinal = await self._experiments.next_ordinal()
        rules = self._rules(ordinal).model_dump(mode="json")
        await self._experiments.save(replace(state, ordinal=ordinal, rules=rules))
        yield ComparisonRequested(
            round=event.round,
            experiment=state.id,
            champion=champion.id,
            candidate=version.id,
            dataset_path=learnt["path"],
            rules=rules,
        )

    # --- the verdict -----------------------------------------------------------------------

    @on(ComparisonFinished)
    async def weigh(self, event: ComparisonFinished, _: Envelope) -> Said:
        """Carry out the verdict on a finished comparison."""
        state = await self._gate.unfinished(event.round)
        if state is None or state.phase != "offline":
            return
        rules = PromotionRules.model_validate(state.rules)
        samples = paired(event.observations, rules.bounds())
        if isinstance(samples, Unmeasurable):
            verdict: Verdict = Reject(samples.because)
        else:
            verdict = judge(samples, rules)
        state = replace(
            state,
            offline={
                **state.offline,
                "samples": list(event.samples),
                "passed": isinstance(verdict, Promote),
                "because": verdict.because,
                "target": metric(verdict.target),
                "guardrails": [metric(rail) for rail in verdict.guardrails],
            },
        )
        for said in await self._gate.carry_out(state, verdict, rules):
            yield said

    @on(ComparisonFailed)
    async def refuse(self, event: ComparisonFailed, _: Envelope) -> Said:
        """A candidate that cannot be measured is not to be used."""
        state = await self._gate.unfinished(event.round)
        if state is not None and state.phase == "offline":
            because = f"it could not be measured: {event.because}"
            for said in await self._gate.drop(state, "rejected", because):
                yield said

    @on(RoundFinished)
    async def note_failure(self, event: RoundFinished, _: Envelope) -> None:
        """A round that failed on its way has a receipt as well."""
        state = await self._gate.unfinished(event.round)
        if state is not None:
            await self._gate.close(state, event.verdict, event.because)

    # --- in use ----------------------------------------------------------------------------

    @on(ReplyGiven)
    async def note_reply(self, event: ReplyGiven, _: Envelope) -> None:
        """Remember who answered, so that a rating finds its model."""
        await self._experiments.note_inference(event.inference, event.experiment or "", event.model)

    @on(FeedbackGiven)
    async def note_rating(self, event: FeedbackGiven, _: Envelope) -> Said:
        """Count a person's rating for its model; it may decide a canary or undo a promotion."""
        if event.name != "rating" or event.source != "HUMAN" or isinstance(event.value, str):
            return
        noted = await self._experiments.inference(event.target)
        if noted is None or not isfinite(event.value):
            return
        experiment, model = noted
        value = min(max(event.value, -1.0), 1.0)
        await self._experiments.note_watch(model, value)
        state = await self._experiments.experiment(experiment)
        if state is not None and state.phase == "canary":
            arm = "candidate" if model == state.candidate else "champion"
            for said in await self._look(replace(state, canary=(*state.canary, (arm, value)))):
                yield said
        for said in await self._watch(model):
            yield said

    @on(ClockTicked)
    async def check_time(self, event: ClockTicked, _: Envelope) -> Said:
        """End canaries whose time is over."""
        for state in await self._gate.canaries():
            for said in await self._look(state, event.at):
                yield said

    async def _look(self, state: ExperimentState, now: datetime | None = None) -> list[Event]:
        """Decide about a canary with the ratings there are."""
        rules = PromotionRules.model_validate(state.rules)
        since = datetime.fromisoformat(state.offline["canary_since"])
        verdict = judge_canary(
            [value for arm, value in state.canary if arm == "champion"],
            [value for arm, value in state.canary if arm == "candidate"],
            hours=((now or self._clock.now()) - since).total_seconds() / 3600,
            rules=rules,
        )
        if isinstance(verdict, Continue):
            await self._experiments.save(state)
            return []
        if isinstance(verdict, LivePromote):
            because = f"{state.offline['because']}; {verdict.because}"
            return await self._gate.promote(state, because, rules, verdict.rating)
        outcome = "rejected" if isinstance(verdict, LiveReject) else "held"
        return await self._gate.drop(state, outcome, verdict.because, verdict.rating)

    async def _watch(self, model: str) -> list[Event]:
        """Undo the promotion of `model` in its watch window if people are worse off."""
        pointer = await self._registry.pointer()
        until = pointer.watch_until
        if model != pointer.champion or until is None or self._clock.now() > until:
            return []
        state = await self._gate.passed(pointer.champion)
        if state is None or pointer.previous is None:
            return []
        verdict = should_roll_back(
            await self._experiments.watched(pointer.previous),
            await self._experiments.watched(pointer.champion),
            PromotionRules.model_validate(state.rules),
        )
        if isinstance(verdict, Continue):
            return []
        return await self._gate.roll_back(
            pointer, pointer.previous, verdict.because, automatic=True
        )

    # --- a person's wish -------------------------------------------------------------------

    @on(PromotionRequested)
    async def promote(self, event: PromotionRequested, _: Envelope) -> Said:
        """Let a person choose among the versions that have passed the gate.

        Such a promotion has no watch window: statistics do not undo a person's word.
        """
        pointer = await self._registry.pointer()
        wanted = await self._registry.model(event.model)
        if wanted is None:
            yield RequestRefused(because=f"there is no model {event.model!r}; see 'soma models'")
            return
        refusal = await self._refusal(wanted, pointer)
        if refusal:
            yield RequestRefused(because=refusal)
            return
        await self._registry.swap(
            expected=pointer.champion, champion=wanted.id, at=self._clock.now()
        )
        yield ModelPromoted(
            model=wanted.id,
            name=wanted.name,
            previous=pointer.champion,
            because="asked by the user",
        )
        for said in await self._gate.end_canaries():
            yield said

    async def _refusal(self, wanted: ModelVersion, pointer: Pointer) -> str | None:
        if wanted.id == pointer.champion:
            return f"{wanted.name} is in service already"
        if wanted.stage == "retired" or not wanted.path:
            return None
        if any(state.candidate == wanted.id for state in await self._experiments.running()):
            return f"{wanted.name} is still being compared; wait for its verdict"
        if wanted.stage == "held" and await self._gate.passed(wanted.id):
            return None
        return f"{wanted.name} did not pass the gate ({wanted.stage}); see 'soma receipts'"

    @on(RollbackRequested)
    async def roll_back(self, event: RollbackRequested, _: Envelope) -> Said:
        """Return to the model before; but not from there to the one that was taken back."""
        pointer = await self._registry.pointer()
        if pointer.previous is None:
            yield RequestRefused(because="there is no model before the one in service")
            return
        restored = await self._gate.known(pointer.previous)
        if restored.stage == "held":
            because = f"the promotion of {restored.name} is undone already"
            yield RequestRefused(because=f"{because}; 'soma promote {restored.name}' repeats it")
            return
        for said in await self._gate.roll_back(
            pointer, restored.id, event.because, automatic=False
        ):
            yield said

    # --- questions -------------------------------------------------------------------------

    @query
    async def receipts(self, limit: int = 50) -> list[dict[str, Any]]:
        """What was learnt, what it did and what it cost; newest first."""
        finished = await self._experiments.finished(limit=limit)
        return [dict(state.receipt) for state in finished if state.receipt]

    @query
    async def models(self) -> list[ModelVersion]:
        """Every model version, newest first."""
        return await self._registry.models()

    @query
    async def pointer(self) -> Pointer:
        """Who is in service."""
        return await self._registry.pointer()

    @query
    async def serving(self) -> Serving:
        """What the gateway must have loaded."""
        pointer = await self._registry.pointer()
        trials = [
            Trial(
                experiment=state.id,
                candidate=await self._gate.known(state.candidate),
                share=PromotionRules.model_validate(state.rules).live.share,
            )
            for state in await self._gate.canaries()
        ]
        return Serving(
            champion=await self._gate.known(pointer.champion),
            previous=await self._gate.known(pointer.previous) if pointer.previous else None,
            canary=trials[0] if trials else None,
        )
