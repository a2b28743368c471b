"""A trainer and an examiner that take their time and always come to the same end for a round."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from arbiters.model_events import (
    ComparisonFailed,
    ComparisonFinished,
    ComparisonRequested,
    Observation,
    TrainingFailed,
    TrainingFinished,
    TrainingProgressed,
    TrainingRequested,
)
from soma_agents.storage.files import make_directory, put_in_place, write_manifest

FATES = ("better", "better", "worse", "same", "untrainable", "unmeasurable")
STEPS = 3
ITEMS = 40
_CHAMPION = 2.0
_GUARDRAILS = ("forgetting", "safety", "personality", "latency", "triggers")
_TARGET: Mapping[str, float] = {"better": 1.5, "worse": 2.5, "same": 2.0}


def fate_of(round_: str) -> str:
    """What becomes of a round; the same in every life."""
    return FATES[hashlib.sha256(round_.encode()).digest()[0] % len(FATES)]


class ScriptedTrainer:
    """A `Trainer` that writes a small sealed directory, after `STEPS` pauses in seconds."""

    def __init__(self, models: Path, *, pause: float) -> None:
        self._models = models
        self._pause = pause

    async def train(
        self, request: TrainingRequested
    ) -> AsyncIterator[TrainingProgressed | TrainingFinished | TrainingFailed]:
        """See `Trainer.train`."""
        for step in range(1, STEPS + 1):
            await asyncio.sleep(self._pause)
            yield TrainingProgressed(
                round=request.round,
                step=step,
                steps=STEPS,
                train_loss=1 / step,
                tokens_per_second=1,
            )
        if fate_of(request.round) == "untrainable":
            yield TrainingFailed(round=request.round, because="the script says so")
            return
        weights = hashlib.sha256(f"{request.round}/{request.dataset}".encode()).digest() * 1000
        model = f"lora-{hashlib.sha256(weights).hexdigest()[:16]}"
        path = await asyncio.to_thread(self._write, model, weights)
        yield TrainingFinished(
            round=request.round,
            model=model,
            path=str(path),
            hyperparameters={"steps": STEPS},
            code_version="script",
            steps=STEPS,
            tokens=100 * STEPS,
            seconds=1.0,
            train_loss=1 / STEPS,
            validation_loss=0.5,
        )

    def _write(self, model: str, weights: bytes) -> Path:
        partial, target = self._models / f".{model}.partial", self._models / model
        make_directory(partial)
        (partial / "weights").write_bytes(weights)
        write_manifest(partial, {"model": model})
        put_in_place(partial, target)
        return target


class ScriptedExaminer:
    """An `Examiner` whose every item says what the round's fate is, after a pause in seconds."""

    def __init__(self, *, pause: float) -> None:
        self._pause = pause

    async def compare(self, request: ComparisonRequested) -> ComparisonFinished | ComparisonFailed:
        """See `Examiner.compare`."""
        await asyncio.sleep(self._pause)
        fate = fate_of(request.round)
        if fate == "unmeasurable":
            return ComparisonFailed(
                round=request.round,
                experiment=request.experiment,
                candidate=request.candidate,
                because="the script says so",
            )
        values = dict.fromkeys(_GUARDRAILS, _CHAMPION) | {"target": _TARGET[fate]}
        observations = tuple(
            Observation(suite=suite, item=str(item), champion=_CHAMPION, candidate=value)
            for suite, value in values.items()
            for item in range(ITEMS)
        )
        return ComparisonFinished(
            round=request.round,
            experiment=request.experiment,
            candidate=request.candidate,
            observations=observations,
            seconds=1.0,
        )
