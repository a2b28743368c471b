"""Specialists beside the personal one: each a base model of its own, loaded when it is asked for.

Their files lie among the models, in a sealed directory of the file's id; which of them answers to
which name the evaluation's registry says. An engine is started for a model when somebody first asks
for it, and closed again when its place or its memory is needed for another and nobody talks to it.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil
import structlog

from arbiters.errors import CorruptError, InvalidError, SomaError, UnavailableError
from arbiters.kernel.directory import Directory
from arbiters.records import ModelVersion
from soma_agents.language.engine import EngineStats
from soma_agents.language.model import LanguageModel
from soma_agents.language.sou.card import Card
from soma_agents.language.sou.memory import plan_of
from soma_agents.language.sou.reader import SouFile
from soma_agents.serving.backend import Backend
from soma_agents.serving.specialist import Specialist
from soma_agents.storage.files import verify_manifest

log = structlog.get_logger(__name__)

FILE = "model.sou"
"""Name of a base model's file in its directory."""
SLOTS = 8
"""Replies at once of a specialist; the personal one has `engine.slots`."""
IDLE_SECONDS = 10.0
"""Since somebody asked: who asked just now may not have begun to listen."""


class Closable(Backend, Protocol):
    """An engine in this process."""

    async def close(self) -> None:
        """End what runs and give the memory back."""
        ...


Start = Callable[[Path], Awaitable[tuple[LanguageModel, Closable]]]
"""Reads a model's file and gives it in an engine that has shown that it can speak."""


@dataclass(slots=True)
class Part:
    """A specialist that is ready to answer."""

    specialist: Specialist
    engine: Backend


@dataclass(slots=True)
class _Loaded:
    model: LanguageModel
    engine: Closable
    asked: float = field(default_factory=time.monotonic)

    @property
    def idle(self) -> bool:
        stats = self.engine.stats()
        return not stats.running + stats.waiting and time.monotonic() - self.asked > IDLE_SECONDS


class Specialists:
    """Who may be asked for by name, and their engines."""

    def __init__(
        self,
        *,
        directory: Directory,
        models: Path,
        start: Start,
        at_most: int,
        free: Callable[[], int] = lambda: psutil.virtual_memory().available,
    ) -> None:
        """At most so many are loaded at once; `free` tells the bytes of memory that are."""
        self._directory = directory
        self._models = models
        self._start = start
        self._at_most = at_most
        self._free = free
        self._cores: tuple[int, ...] = ()
        self._versions: dict[str, ModelVersion] = {}
        self._cards: dict[str, Card] = {}
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._loading = asyncio.Lock()

    # --- who there is ----------------------------------------------------------------------

    @property
    def versions(self) -> list[ModelVersion]:
        """Those that may be asked for, by name."""
        return list(self._versions.values())

    def stats(self) -> dict[str, EngineStats]:
        """What the engines of those do that are loaded, by name."""
        return {
            name: self._loaded[version.id].engine.stats()
            for name, version in self._versions.items()
            if version.id in self._loaded
        }

    def card(self, name: str) -> Card | None:
        """What a specialist's file says of its use; None if there is none of that name."""
        return self._cards.get(name)

    async def refresh(self) -> None:
        """Take over who is registered; whose file cannot be read is left out, with a log line."""
        found: list[ModelVersion] = await self._directory.ask("evaluation", "specialists")
        cards: dict[str, Card] = {}
        for version in found:
            try:
                cards[version.name] = await asyncio.to_thread(card_of, self.file(version.id))
            except SomaError as error:
                log.warning("a specialist is left out", name=version.name, error=str(error))
        self._cards = cards
        self._versions = {v.name: v for v in found if v.name in cards}

    def file(self, model: str) -> Path:
        """Where a base model's file lies."""
        return self._models / model / FILE

    # --- answering -------------------------------------------------------------------------

    async def part(self, version: ModelVersion) -> Part:
        """A specialist with its engine, loaded if need be.

        Raises:
            CorruptError, InvalidError: its file is not what was written, or cannot speak.
            UnavailableError: there is no room for it now.
        """
        found = await self.ready(version.id)
        return Part(Specialist(found.model, name=version.name), found.engine)

    async def ready(self, model: str) -> _Loaded:
        """A base model in an engine; see `part`."""
        if model not in self._loaded:
            async with self._loading:
                if model not in self._loaded:
                    self._loaded[model] = await self._load(model)
        found = self._loaded[model]
        found.asked = time.monotonic()
        self._loaded.move_to_end(model)
        return found

    async def _load(self, model: str) -> _Loaded:
        file = self.file(model)
        await asyncio.to_thread(verify_manifest, file.parent)
        await self._make_room(model, await asyncio.to_thread(_bytes_of, file))
        read, engine = await self._start(file)
        if read.id != model:
            await engine.close()
            raise CorruptError(f"{file} is {read.id}, not {model}: it was put under another's name")
        if self._cores:
            await engine.use_cores(self._cores)
        log.info("a specialist's model is loaded", model=model)
        return _Loaded(read, engine)

    async def _make_room(self, model: str, needed: int) -> None:
        """Close engines, the longest unasked first, until one more fits.

        Raises:
            InvalidError: the settings allow none.
            UnavailableError: those that are loaded are busy, or memory is short.
        """
        if not self._at_most:
            raise InvalidError("engine.specialists = 0 allows no model beside the first; raise it")
        while len(self._loaded) >= self._at_most or needed > self._free():
            idle = next((name for name, one in self._loaded.items() if one.idle), None)
            if idle is None:
                raise UnavailableError(
                    f"{model} takes {needed / 1e6:.0f} MB of memory, {self._free() / 1e6:.0f} are "
                    f"free, and {len(self._loaded)} of {self._at_most} models (engine.specialists) "
                    "are loaded and in use; ask again later"
                )
            await self._loaded.pop(idle).engine.close()
            log.info("a specialist's model is unloaded", model=idle)

    # --- running ---------------------------------------------------------------------------

    async def use_cores(self, cores: tuple[int, ...]) -> None:
        """Decode on these cores alone from now on."""
        self._cores = cores
        for one in list(self._loaded.values()):
            await one.engine.use_cores(cores)

    async def close(self) -> None:
        """Close every engine."""
        while self._loaded:
            await self._loaded.popitem()[1].engine.close()


def card_of(file: Path) -> Card:
    """What a model's file says of its use.

    Raises:
        NotFoundError, CorruptError, InvalidError: it is missing, damaged or of another kind.
    """
    opened = SouFile(file)
    try:
        return opened.directory.card
    finally:
        opened.close()


def _bytes_of(file: Path) -> int:
    """What serving it takes, every reply at full context."""
    opened = SouFile(file)
    try:
        return plan_of(opened, context=opened.directory.config.context, streams=SLOTS).total
    finally:
        opened.close()
