"""The parts of SOMA that the web interface is put over."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from arbiters.kernel.bus import Publisher
from arbiters.kernel.directory import Directory
from arbiters.ports import Clock, EventLog, Ids
from soma_agents.language.engine import Engine
from soma_agents.language.model import LanguageModel
from soma_agents.runtime.engine import started_engine
from soma_agents.runtime.snapshots import Owners
from soma_agents.serving.backend import Backend
from soma_agents.serving.embeddings import Embeddings
from soma_agents.serving.gateway import Gateway
from soma_agents.serving.rollout import Rollout
from soma_agents.serving.specialist import Specialist
from soma_agents.serving.specialists import SLOTS, Specialists
from soma_agents.settings import Settings
from soma_agents.storage.keys import ApiKeys


class Runtime(Owners, Protocol):
    """The log and the arbiters, wherever they run."""

    @property
    def log(self) -> EventLog: ...
    @property
    def directory(self) -> Directory: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def ids(self) -> Ids: ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a handler may use. `start` and `close` are the application's lifespan."""

    settings: Settings
    log: EventLog
    publisher: Publisher
    directory: Directory
    owners: Owners
    model: LanguageModel
    engine: Backend
    specialists: Specialists
    rollout: Rollout
    gateway: Gateway
    embeddings: Embeddings
    keys: ApiKeys
    clock: Clock
    ids: Ids

    @classmethod
    def over(
        cls,
        settings: Settings,
        runtime: Runtime,
        model: LanguageModel,
        engine: Backend,
        *,
        cores: Sequence[int],
    ) -> "Services":
        """Build the gateway and the rollout over the log, the arbiters and a started engine.

        `cores` are those it shares with what runs beside it.

        Raises:
            NotFoundError, InvalidError, CorruptError: of the setting `embeddings.model`.
        """
        log, directory, ids = runtime.log, runtime.directory, runtime.ids
        publisher = Publisher(log=log, clock=runtime.clock, ids=ids, producer="gateway")
        specialists = _specialists(settings, directory)
        rollout = Rollout(
            engine=engine,
            model=model,
            specialists=specialists,
            directory=directory,
            log=log,
            publisher=publisher,
            models=settings.home / "models",
            cores=tuple(cores),
            max_adapters=settings.engine.adapters,
        )
        embeddings = Embeddings.of(settings.embeddings.model)
        gateway = Gateway(
            engine=engine,
            specialist=Specialist(model),
            specialists=specialists,
            rollout=rollout,
            directory=directory,
            embeddings=embeddings,
            log=log,
            publisher=publisher,
            ids=ids,
        )
        return cls(
            settings=settings,
            log=log,
            publisher=publisher,
            directory=directory,
            owners=runtime,
            model=model,
            engine=engine,
            specialists=specialists,
            rollout=rollout,
            gateway=gateway,
            embeddings=embeddings,
            keys=ApiKeys(settings.keys_file, runtime.clock),
            clock=runtime.clock,
            ids=ids,
        )

    async def start(self) -> None:
        """Load who is in service and learn where conversations stand."""
        await self.rollout.start()
        await self.gateway.start()

    async def close(self) -> None:
        """End the turns under way, then stop following the log."""
        await self.gateway.close()
        await self.rollout.close()
        await self.specialists.close()
        self.embeddings.close()

    def now(self) -> int:
        """Unix time in seconds."""
        return int(self.clock.now().timestamp())


def _specialists(settings: Settings, directory: Directory) -> Specialists:
    async def start(file: Path) -> tuple[LanguageModel, Engine]:
        return await started_engine(settings, str(file), slots=SLOTS)

    return Specialists(
        directory=directory,
        models=settings.home / "models",
        start=start,
        at_most=settings.engine.specialists,
    )
