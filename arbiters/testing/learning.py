"""Rounds, datasets, models and experiments in memory; a trainer and an examiner by script."""

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

from arbiters.errors import ConflictError, InvalidError, NotFoundError
from arbiters.events import ChatMessage, ConversationImported
from arbiters.model_events import (
    ComparisonFailed,
    ComparisonFinished,
    ComparisonRequested,
    TrainingFailed,
    TrainingFinished,
    TrainingProgressed,
    TrainingRequested,
)
from arbiters.records import DatasetRef, Example, ExperimentState, ModelVersion, Pointer, RoundState
from arbiters.testing.bus import Memory

STAGES = ("candidate", "retired", "rejected", "held")


def dialogue(asked: str, answer: str, *, held_out: bool = False) -> ConversationImported:
    """A dialogue of two turns, known by its question."""
    return ConversationImported(
        conversation=asked,
        digest=asked,
        source="test",
        messages=(
            ChatMessage(role="user", content=asked),
            ChatMessage(role="assistant", content=answer),
        ),
        held_out=held_out,
    )


class MemoryRoundStore(Memory):
    """A `RoundStore`."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._rounds: dict[str, RoundState] = {}

    async def count(self, offset: int, messages: int) -> None:
        self._counts[offset] = messages

    async def messages_since(self, offset: int) -> int:
        return sum(messages for at, messages in self._counts.items() if at > offset)

    async def save(self, state: RoundState) -> None:
        self._rounds[state.id] = state

    async def current(self) -> RoundState | None:
        unfinished = (r for r in self._rounds.values() if r.step != "finished")
        return next(unfinished, None)

    async def latest(self) -> RoundState | None:
        newest = await self.rounds(limit=1)
        return newest[0] if newest else None

    async def rounds(self, *, limit: int = 50) -> list[RoundState]:
        return list(reversed(self._rounds.values()))[:limit]


class MemoryDatasetWriter:
    """A `DatasetWriter` that keeps what was written in `written`, by id."""

    def __init__(self) -> None:
        self.written: dict[str, tuple[Mapping[str, Sequence[Example]], Mapping[str, Any]]] = {}

    async def write(
        self, splits: Mapping[str, Sequence[Example]], manifest: Mapping[str, Any]
    ) -> DatasetRef:
        content = repr({name: tuple(examples) for name, examples in sorted(splits.items())})
        identity = hashlib.sha256(content.encode()).hexdigest()[:16]
        self.written.setdefault(identity, (dict(splits), dict(manifest)))
        counts = {
            name: sum(example.rejected is None for example in examples)
            for name, examples in splits.items()
        }
        counts["preferences"] = sum(len(each) for each in splits.values()) - sum(counts.values())
        return DatasetRef(id=identity, path=f"memory/{identity}", counts=counts)


class MemoryRegistry(Memory):
    """A `Registry`."""

    def __init__(self) -> None:
        self._models: dict[str, ModelVersion] = {}
        self._specialists: dict[str, ModelVersion] = {}
        self._retired: set[str] = set()
        self._pointer: Pointer | None = None

    async def register(self, version: ModelVersion) -> ModelVersion:
        known = self._models.get(version.id)
        if known is not None:
            return known
        numbers = [int(m.name.removeprefix("soma-v")) for m in self._models.values()]
        name = f"soma-v{max(numbers, default=0) + 1}"
        self._models[version.id] = replace(version, name=name, stage="candidate")
        return self._models[version.id]

    async def model(self, model: str) -> ModelVersion | None:
        named = (m for m in self._models.values() if model in (m.id, m.name))
        return next(named, None)

    async def models(self) -> list[ModelVersion]:
        return list(reversed(self._models.values()))

    async def set_stage(self, model: str, stage: str) -> None:
        found = await self.model(model)
        if found is None:
            raise NotFoundError(f"no model {model!r} is registered")
        if stage not in STAGES:
            raise InvalidError(f"stage {stage!r} is not one of {', '.join(STAGES)}")
        if self._pointer is not None and self._pointer.champion == found.id:
            raise ConflictError(f"{found.name} is the champion; swap the pointer first")
        self._models[found.id] = replace(found, stage=cast("Any", stage))

    async def add_specialist(self, version: ModelVersion) -> None:
        known = self._specialists.get(version.name)
        if known is not None and known.id != version.id:
            raise ConflictError(f"the name {version.name!r} belongs to {known.id}; choose another")
        self._specialists.setdefault(version.name, version)
        self._retired.discard(version.name)

    async def retire_specialist(self, name: str) -> None:
        if name not in self._specialists or name in self._retired:
            raise NotFoundError(f"no specialist is called {name!r}; see 'soma models'")
        self._retired.add(name)

    async def specialists(self) -> list[ModelVersion]:
        names = sorted(self._specialists.keys() - self._retired)
        return [self._specialists[name] for name in names]

    async def pointer(self) -> Pointer:
        if self._pointer is None:
            raise NotFoundError("no model is in service; install the base model first")
        return self._pointer

    async def install(self, version: ModelVersion, *, at: datetime) -> None:
        if self._pointer is not None:
            return
        self._models[version.id] = replace(version, name="soma-v0", stage="champion")
        self._pointer = Pointer(champion=version.id, previous=None, since=at)

    async def swap(
        self, *, expected: str, champion: str, at: datetime, watch_until: datetime | None = None
    ) -> Pointer:
        pointer = await self.pointer()
        if champion not in self._models:
            raise NotFoundError(f"no model {champion!r} is registered")
        if pointer.champion != expected:
            raise ConflictError(
                f"the champion is {pointer.champion!r}, not {expected!r}; look again"
            )
        if champion != expected:
            self._models[expected] = replace(self._models[expected], stage="retired")
            self._models[champion] = replace(self._models[champion], stage="champion")
            self._pointer = Pointer(champion, expected, at, watch_until)
        return self._pointer or pointer


class MemoryExperimentStore(Memory):
    """An `ExperimentStore`."""

    def __init__(self) -> None:
        self._experiments: dict[str, ExperimentState] = {}
        self._inferences: dict[str, tuple[str, str]] = {}
        self._watched: list[tuple[str, float]] = []

    async def save(self, experiment: ExperimentState) -> None:
        self._experiments[experiment.id] = experiment

    async def experiment(self, experiment: str) -> ExperimentState | None:
        return self._experiments.get(experiment)

    async def running(self) -> list[ExperimentState]:
        return [e for e in self._experiments.values() if e.phase != "finished"]

    async def finished(self, *, limit: int = 50) -> list[ExperimentState]:
        newest_first = reversed(self._experiments.values())
        return [e for e in newest_first if e.phase == "finished"][:limit]

    async def next_ordinal(self) -> int:
        return max((e.ordinal for e in self._experiments.values()), default=0) + 1

    async def note_inference(self, inference: str, experiment: str, model: str) -> None:
        self._inferences[inference] = (experiment, model)

    async def inference(self, inference: str) -> tuple[str, str] | None:
        return self._inferences.get(inference)

    async def note_watch(self, model: str, value: float) -> None:
        self._watched.append((model, value))

    async def watched(self, model: str) -> list[float]:
        return [value for watched, value in self._watched if watched == model]


Outcome = TrainingProgressed | TrainingFinished | TrainingFailed


class FakeTrainer:
    """A `Trainer` that says what its script holds; exceptions in the script are raised."""

    def __init__(self, *script: Outcome | Exception) -> None:
        self._script = script
        self.requests: list[TrainingRequested] = []

    async def train(self, request: TrainingRequested) -> AsyncIterator[Outcome]:
        self.requests.append(request)
        for outcome in self._script:
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome


class FakeExaminer:
    """An `Examiner` that answers from its script, one result a call."""

    def __init__(self, *script: ComparisonFinished | ComparisonFailed | Exception) -> None:
        self._script = list(script)
        self.requests: list[ComparisonRequested] = []

    async def compare(self, request: ComparisonRequested) -> ComparisonFinished | ComparisonFailed:
        self.requests.append(request)
        result = self._script.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


class FakeMeasures:
    """`Measures` that are the same for every text, but for its number of words."""

    def __init__(self, **values: float) -> None:
        self._values = values

    def of(self, text: str) -> Mapping[str, float]:
        return {"words": float(len(text.split())), **self._values}
