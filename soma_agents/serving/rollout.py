"""Which model versions answer: loaded beside the old ones, tested, then routed to.

The pointer is moved by the evaluation alone. The rollout reads it, follows the log for its moves,
and routes to a version only after that version has shown here that it can speak.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import structlog

from arbiters.envelope import Envelope
from arbiters.errors import CorruptError, InvalidError, NotFoundError, SomaError, UnavailableError
from arbiters.evaluation.arbiter import Serving
from arbiters.kernel.bus import Publisher
from arbiters.kernel.directory import Directory
from arbiters.model_events import RollbackRequested
from arbiters.ports import EventLog
from arbiters.records import ModelVersion
from policies.routing import PERSONAL, Canary, RoutingFacts, UnknownModel, route
from policies.supervision import share_cores
from soma_agents.language.model import LanguageModel
from soma_agents.language.requests import Finished, GenerationRequest
from soma_agents.language.sampling import Sampling
from soma_agents.serving.backend import Backend, generation
from soma_agents.serving.follower import Follower
from soma_agents.serving.specialists import Specialists
from soma_agents.storage.files import verify_manifest

log = structlog.get_logger(__name__)

POINTER_MOVES = frozenset(
    {"ModelPromoted", "ModelRolledBack", "CanaryStarted", "EvaluationFinished"}
)
SPECIALISTS_CHANGE = frozenset({"SpecialistRegistered", "SpecialistRetired"})
WORK_BEGINS = frozenset({"TrainingRequested", "ComparisonRequested"})
WORK_ENDS = frozenset({"RoundFinished"})
SERVABLE = frozenset({"champion", "retired", "held"})
"""Stages of versions that may be asked for by name; a canary's candidate may be, too."""
_BROKEN = (CorruptError, InvalidError, NotFoundError)
"""What a version that can never speak fails with; being busy or away is another thing."""
TEST_PROMPT = "Hello"
TEST_TOKENS = 8
TEST_SECONDS = 60.0
"""For a version to be read and to say its first words."""


class ModelNotFoundError(NotFoundError):
    """No model version that may answer has this name."""


@dataclass(frozen=True, slots=True)
class Lineup:
    """Who answers now. `fallback` is the base model, which needs no adapter."""

    champion: ModelVersion
    fallback: ModelVersion
    previous: ModelVersion | None = None
    candidate: ModelVersion | None = None
    canary: Canary | None = None


@dataclass(frozen=True, slots=True)
class Routed:
    """The version that answers one message, in which role and experiment."""

    version: ModelVersion
    specialist: str
    experiment: str | None = None

    @property
    def adapter(self) -> str | None:
        """The adapter to decode with; None for the base model."""
        return self.version.id if self.version.path else None


class Rollout:
    """Follows the champion pointer with what is loaded in the engine."""

    def __init__(
        self,
        *,
        engine: Backend,
        model: LanguageModel,
        specialists: Specialists,
        directory: Directory,
        log: EventLog,
        publisher: Publisher,
        models: Path,
        cores: tuple[int, ...],
        max_adapters: int,
    ) -> None:
        self._engine = engine
        self._model = model
        self._specialists = specialists
        self._directory = directory
        self._publisher = publisher
        self._models = models
        self._cores = cores
        self._max_adapters = max_adapters
        self._lineup: Lineup | None = None
        self._versions: dict[str, ModelVersion] = {}
        self._broken: dict[str, str] = {}
        self._ready: set[str] = set()
        self._used: list[str] = []
        self._loading = asyncio.Lock()
        heard = POINTER_MOVES | SPECIALISTS_CHANGE | WORK_BEGINS | WORK_ENDS
        self._follower = Follower(log, heard, self._hear)

    # --- running ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Load who is in service and follow the log from here on."""
        await self._follower.skip()
        await self.refresh()
        await self._specialists.refresh()
        await self._share_cores(training=await self._in_round())
        self._follower.start()

    async def close(self) -> None:
        """Stop following."""
        await self._follower.close()

    async def reached(self, offset: int) -> None:
        """Wait until everything up to this offset is in effect here.

        Raises:
            UnavailableError: that took longer than a minute.
        """
        await self._follower.reached(offset)

    # --- who answers -----------------------------------------------------------------------

    @property
    def lineup(self) -> Lineup:
        """Who answers now.

        Raises:
            UnavailableError: nothing is loaded yet.
        """
        if self._lineup is None:
            raise UnavailableError("no model is loaded yet; ask again")
        return self._lineup

    async def versions(self) -> list[ModelVersion]:
        """Versions that may be asked for by name, newest first."""
        return [v for v in await self._all() if self._servable(v)]

    async def route(self, requested: str, user: str, conversation: str) -> Routed:
        """The version that answers a message.

        Raises:
            ModelNotFoundError: no version that may answer has this name.
            CorruptError: the version asked for by name cannot speak.
        """
        chosen = route(self._facts(requested, user, conversation))
        if isinstance(chosen, UnknownModel):
            await self._all()  # it may have become known since
            chosen = route(self._facts(requested, user, conversation))
        if isinstance(chosen, UnknownModel):
            raise ModelNotFoundError(chosen.because)
        if chosen.specialist != PERSONAL:
            version = next(v for v in self._specialists.versions if v.name == chosen.specialist)
            return Routed(version, chosen.specialist)
        version = self._versions[chosen.model]
        await self._load(version)
        return Routed(version, chosen.specialist, chosen.experiment)

    def _facts(self, requested: str, user: str, conversation: str) -> RoutingFacts:
        return RoutingFacts(
            user=user,
            conversation=conversation,
            champion=self.lineup.champion.id,
            models={v.name: v.id for v in self._versions.values() if self._servable(v)},
            specialists={v.name: v.id for v in self._specialists.versions},
            requested=requested,
            canary=self.lineup.canary,
        )

    def _servable(self, version: ModelVersion) -> bool:
        candidate = self.lineup.candidate
        in_canary = candidate is not None and candidate.id == version.id
        return (in_canary or version.stage in SERVABLE) and version.id not in self._broken

    async def _all(self) -> list[ModelVersion]:
        found: list[ModelVersion] = await self._directory.ask("evaluation", "models")
        self._versions = {version.id: version for version in found}
        return found

    def why_not(self, model: str) -> str:
        """Why a version does not answer although it was promoted."""
        version = self._versions.get(model)
        name = version.name if version else model
        return f"{name} does not answer: {self._broken.get(model, 'another version came after it')}"

    # --- following the pointer -------------------------------------------------------------

    async def _hear(self, envelope: Envelope) -> None:
        if envelope.type in POINTER_MOVES:
            await self.refresh()
        elif envelope.type in SPECIALISTS_CHANGE:
            await self._specialists.refresh()
        elif envelope.type in WORK_BEGINS:
            await self._share_cores(training=True)
        else:
            await self._share_cores(training=False)

    async def refresh(self) -> None:
        """Take over who is in service, after a self-test of whoever is new."""
        serving: Serving = await self._directory.ask("evaluation", "serving")
        await self._all()
        fallback = next(v for v in self._versions.values() if not v.path)
        previous = await self._tested(serving.previous)
        champion = await self._tested(serving.champion)
        if champion is None:
            await self._ask_back(serving.champion)
            champion = previous or fallback
        trial = serving.canary
        candidate = await self._tested(trial.candidate if trial else None)
        self._lineup = Lineup(
            champion=champion,
            fallback=fallback,
            previous=previous,
            candidate=candidate,
            canary=Canary(trial.experiment, trial.candidate.id, trial.share)
            if trial is not None and candidate is not None
            else None,
        )
        log.info("in service", champion=champion.name, canary=candidate and candidate.name)

    async def _tested(self, version: ModelVersion | None) -> ModelVersion | None:
        """The version if it can speak here, else None. One that could not is tried anew."""
        if version is None:
            return None
        self._broken.pop(version.id, None)
        try:
            await self._load(version)
        except _BROKEN as error:
            log.warning("a version failed its self-test", model=version.name, error=str(error))
            return None
        return version

    async def _ask_back(self, version: ModelVersion) -> None:
        """The champion cannot speak: its promotion is to be undone, so that the pointer is true."""
        because = (
            f"{version.name} failed its self-test: {self._broken.get(version.id, 'not loaded')}"
        )
        await self._publisher.publish(
            RollbackRequested(because=because),
            idempotency=f"rollout/{version.id}/{self._follower.cursor}",
        )

    # --- loading ---------------------------------------------------------------------------

    async def _load(self, version: ModelVersion) -> None:
        """Have a version ready to answer; the first time it must pass its self-test.

        Raises:
            CorruptError: its files are not what was written, or it cannot speak.
        """
        if not version.path or self._is_ready(version.id):
            return
        async with self._loading:
            if self._is_ready(version.id):
                return
            if version.id in self._broken:
                raise CorruptError(self._broken[version.id])
            await self._make_room()
            try:
                await self._try(version)
            except _BROKEN as error:
                self._broken[version.id] = str(error)
                raise
            self._touch(version.id)
            self._ready.add(version.id)

    def _is_ready(self, adapter: str) -> bool:
        """Whether it passed its self-test and is loaded: its users wait for nobody else's test."""
        if adapter not in self._ready or adapter not in self._engine.adapters():
            return False
        self._touch(adapter)
        return True

    async def _try(self, version: ModelVersion) -> None:
        """Load a version and hear it; one that fails is not left behind.

        Raises:
            CorruptError: it cannot be loaded, gave NaN or nothing, or took too long.
        """
        self._ready.discard(version.id)
        # Not `version.path`: the data directory may have been restored to another place.
        directory = self._models / version.id
        try:
            async with asyncio.timeout(TEST_SECONDS):
                await asyncio.to_thread(verify_manifest, directory)
                await self._engine.load_adapter(version.id, directory)
                await self._speak(version)
        except SomaError:
            await self._engine.unload_adapter(version.id)
            raise
        except Exception as error:
            # Whatever it is: a broken version must not take along those that answer.
            await self._engine.unload_adapter(version.id)
            why = (
                f"nothing within {TEST_SECONDS:g} seconds"
                if isinstance(error, TimeoutError)
                else repr(error)
            )
            raise CorruptError(
                f"model {version.name} cannot speak: its self-test gave {why}"
            ) from error

    async def _speak(self, version: ModelVersion) -> None:
        """One greedy generation.

        Raises:
            CorruptError: it gave NaN or nothing.
        """
        request = GenerationRequest(
            prompt=tuple(self._model.tokenizer.encode(TEST_PROMPT)),
            sampling=Sampling(temperature=0.0, max_tokens=TEST_TOKENS),
            adapter=version.id,
        )
        reason = "nothing"
        async with generation(self._engine, request) as items:
            async for item in items:
                if isinstance(item, Finished):
                    reason = item.reason
        if reason not in {"stop", "length"}:
            raise CorruptError(f"model {version.name} cannot speak: its self-test gave {reason!r}")

    def _touch(self, adapter: str) -> None:
        if adapter in self._used:
            self._used.remove(adapter)
        self._used.append(adapter)

    async def _make_room(self) -> None:
        """Unload the longest unused adapters that are not in service."""
        needed = set[str]()
        if self._lineup is not None:
            named = (self._lineup.champion, self._lineup.previous, self._lineup.candidate)
            needed = {version.id for version in named if version is not None}
        loaded = self._engine.adapters()
        for adapter in [a for a in self._used if a in loaded and a not in needed]:
            if len(self._engine.adapters()) < self._max_adapters:
                return
            await self._engine.unload_adapter(adapter)

    # --- cores -----------------------------------------------------------------------------

    async def _in_round(self) -> bool:
        status = await self._directory.ask("auto_training_coordinator", "status")
        return status["round"] is not None

    async def _share_cores(self, *, training: bool) -> None:
        shares = share_cores(self._cores, training=training)
        await self._engine.use_cores(shares.engine)
        await self._specialists.use_cores(shares.engine)
