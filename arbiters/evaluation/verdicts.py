"""Carrying out verdicts: registry, pointer, receipt and the events that say so."""

from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any, Literal

from arbiters.errors import NotFoundError
from arbiters.events import Event
from arbiters.model_events import (
    CanaryStarted,
    CandidateHeld,
    CandidateRejected,
    EvaluationFinished,
    MetricChange,
    ModelPromoted,
    ModelRolledBack,
)
from arbiters.ports import Clock
from arbiters.records import ExperimentState, ModelVersion, Pointer
from arbiters.stores import ExperimentStore, Registry
from policies.promotion import Measured, Promote, PromotionRules, Reject, Verdict

CHAMPION_CHANGED = "the champion it was compared with is not in service any more"


EXPERIMENTS_KEPT = 1000
"""Experiments looked through for a version's own."""


def experiment_of(round_: str) -> str:
    """The id of the one experiment that a round makes."""
    return f"exp-{round_}"


def metric(measured: Measured | None) -> dict[str, Any] | None:
    """A measure as a `MetricChange`, in JSON's types."""
    return MetricChange(**asdict(measured)).model_dump(mode="json") if measured else None


class Gate:
    """What follows from a verdict. Each method returns the events that say what it did."""

    def __init__(self, *, registry: Registry, experiments: ExperimentStore, clock: Clock) -> None:
        self._registry = registry
        self._experiments = experiments
        self._clock = clock

    # --- looking ---------------------------------------------------------------------------

    async def known(self, model: str) -> ModelVersion:
        """The version with this id.

        Raises:
            NotFoundError: the registry has lost it.
        """
        found = await self._registry.model(model)
        if found is None:
            raise NotFoundError(f"model {model!r} is not registered; restore the registry's backup")
        return found

    async def in_service(self, model: str) -> bool:
        """Whether this version is the champion."""
        return (await self._registry.pointer()).champion == model

    async def unfinished(self, round_: str) -> ExperimentState | None:
        """A round's experiment as long as it has no verdict."""
        state = await self._experiments.experiment(experiment_of(round_))
        return state if state is not None and state.phase != "finished" else None

    async def passed(self, model: str) -> ExperimentState | None:
        """The newest experiment with a verdict in which this version passed its comparison."""
        for state in await self._experiments.finished(limit=EXPERIMENTS_KEPT):
            if state.candidate == model and state.offline.get("passed"):
                return state
        return None

    async def canaries(self) -> list[ExperimentState]:
        """Experiments in use; the coordinator's rounds make it one at most."""
        return [state for state in await self._experiments.running() if state.phase == "canary"]

    # --- after a comparison ----------------------------------------------------------------

    async def carry_out(
        self, state: ExperimentState, verdict: Verdict, rules: PromotionRules
    ) -> list[Event]:
        """Reject, hold, try in use, or promote."""
        if not isinstance(verdict, Promote):
            outcome = "rejected" if isinstance(verdict, Reject) else "held"
            return await self.drop(state, outcome, verdict.because)
        if rules.live.canary and await self.in_service(state.champion):
            return [await self._try_live(state, rules)]
        return await self.promote(state, verdict.because, rules)

    async def _try_live(self, state: ExperimentState, rules: PromotionRules) -> Event:
        since = self._clock.now().isoformat()
        await self._experiments.save(
            replace(state, phase="canary", offline={**state.offline, "canary_since": since})
        )
        return CanaryStarted(
            round=state.round,
            experiment=state.id,
            champion=state.champion,
            candidate=state.candidate,
            share=rules.live.share,
        )

    async def promote(
        self,
        state: ExperimentState,
        because: str,
        rules: PromotionRules,
        canary: Measured | None = None,
    ) -> list[Event]:
        """Swap the pointer, if the champion is still the one that was compared."""
        if not await self.in_service(state.champion):
            return await self.drop(state, "held", CHAMPION_CHANGED, canary)
        now = self._clock.now()
        watch_until = now + timedelta(hours=rules.live.watch_hours)
        await self._registry.swap(
            expected=state.champion, champion=state.candidate, at=now, watch_until=watch_until
        )
        promoted = ModelPromoted(
            model=state.candidate,
            name=(await self.known(state.candidate)).name,
            previous=state.champion,
            round=state.round,
            because=because,
            watch_until=watch_until,
        )
        return [promoted, await self.finish(state, "promoted", because, canary)]

    async def drop(
        self,
        state: ExperimentState,
        verdict: Literal["rejected", "held"],
        because: str,
        canary: Measured | None = None,
    ) -> list[Event]:
        """Keep the candidate out of service."""
        await self._set_stage(state, verdict)
        event = CandidateRejected if verdict == "rejected" else CandidateHeld
        dropped = event(round=state.round, model=state.candidate, because=because)
        return [dropped, await self.finish(state, verdict, because, canary)]

    async def finish(
        self,
        state: ExperimentState,
        verdict: Literal["promoted", "rejected", "held"],
        because: str,
        canary: Measured | None = None,
    ) -> Event:
        """Write the receipt and say the verdict."""
        receipt = await self._write_receipt(state, verdict, because, canary)
        return EvaluationFinished(
            round=state.round,
            experiment=state.id,
            candidate=state.candidate,
            verdict=verdict,
            because=because,
            target=receipt["target"],
            guardrails=tuple(receipt["guardrails"]),
            canary=receipt["canary"],
            seconds=receipt["seconds"],
        )

    async def close(self, state: ExperimentState, verdict: str, because: str) -> None:
        """End an experiment whose round failed on its way."""
        await self._set_stage(state, "held")
        await self._write_receipt(state, verdict, because)

    async def _set_stage(self, state: ExperimentState, stage: str) -> None:
        # Training may give an old version again, which a person may have put into service since.
        if state.candidate and not await self.in_service(state.candidate):
            await self._registry.set_stage(state.candidate, stage)

    async def _write_receipt(
        self,
        state: ExperimentState,
        verdict: str,
        because: str,
        canary: Measured | None = None,
    ) -> dict[str, Any]:
        """Close the experiment with what was learnt, what it did and what it cost."""
        now = self._clock.now()
        candidate = await self._registry.model(state.candidate)
        receipt: dict[str, Any] = {
            "round": state.round,
            "verdict": verdict,
            "because": because,
            "candidate": {"name": candidate.name, "id": candidate.id} if candidate else None,
            "target": state.offline.get("target"),
            "guardrails": state.offline.get("guardrails", []),
            "canary": metric(canary),
            "seconds": (now - state.started_at).total_seconds(),
            "at": now.isoformat(),
            "champion": state.champion,
            "ordinal": state.ordinal,
            "learnt": state.offline.get("learnt"),
            "training": state.offline.get("training"),
            "samples": state.offline.get("samples", []),
        }
        await self._experiments.save(replace(state, phase="finished", receipt=receipt))
        return receipt

    # --- the way back ----------------------------------------------------------------------

    async def roll_back(
        self, pointer: Pointer, restored: str, because: str, *, automatic: bool
    ) -> list[Event]:
        """Swap the pointer back to the version before; a person may choose the other one again."""
        await self._registry.swap(
            expected=pointer.champion, champion=restored, at=self._clock.now()
        )
        await self._registry.set_stage(pointer.champion, "held")
        rolled_back = ModelRolledBack(
            model=pointer.champion,
            restored=restored,
            restored_name=(await self.known(restored)).name,
            automatic=automatic,
            because=because,
        )
        return [rolled_back, *await self.end_canaries()]

    async def end_canaries(self) -> list[Event]:
        """Nothing is learnt about a champion that is not in service any more."""
        return [
            said
            for state in await self.canaries()
            for said in await self.drop(state, "held", CHAMPION_CHANGED)
        ]
