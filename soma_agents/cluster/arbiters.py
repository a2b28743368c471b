"""The arbiters as Ray actors: each opens its own database and drives its own host."""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from arbiters.errors import NotFoundError
from arbiters.records import DeadLetter
from soma_agents.cluster import lean
from soma_agents.cluster.bus import RayEventLog, opened, spare_the_collector
from soma_agents.cluster.calls import NamedActor
from soma_agents.cluster.names import BUS
from soma_agents.cluster.workshop import workshop_tools
from soma_agents.runtime import assembly
from soma_agents.runtime.snapshots import LOG
from soma_agents.settings import Settings
from soma_agents.storage.identifiers import SystemClock, Uuid7

MAX_CALLS = 200
"""Calls at once; a question that waits for an offset holds one."""
_STOP_SECONDS = 8.0
_COPY_SECONDS = 600.0

log = structlog.get_logger(__name__)


class ArbiterActor:
    """One arbiter in a process of its own.

    All of its state is in its database, so that Ray may start it anew at any moment. When its
    host dies, so does the process: half an arbiter that still answers would be worse.
    """

    async def __init__(self, name: str, settings: str, prepare: Callable[[str], None]) -> None:
        prepare(name)
        spare_the_collector()
        if name == "training_data_exporter":
            lean.admit("pyarrow")
        self._name = name
        self._settings = Settings.model_validate_json(settings)
        self._opened = await opened(self._open)
        self._running = asyncio.create_task(self._opened.host.run(), name=name)
        self._running.add_done_callback(self._fell)
        log.info("arbiter runs", arbiter=name, pid=os.getpid())

    async def _open(self) -> Any:
        trainer, examiner = workshop_tools(self._name, self._settings)
        return await assembly.build_host(
            self._name, self._settings, log=RayEventLog(), trainer=trainer, examiner=examiner
        )

    def _fell(self, running: asyncio.Task[None]) -> None:
        if running.cancelled():
            return
        log.error("arbiter died", arbiter=self._name, exc_info=running.exception())
        os._exit(1)

    async def ask(self, question: str, arguments: dict[str, Any], at_least: int) -> Any:
        """See `Host.ask`."""
        return await self._opened.host.ask(question, arguments, at_least=at_least)

    async def dead_letters(self) -> list[DeadLetter]:
        """See `Host.dead_letters`."""
        return await self._opened.host.dead_letters()

    async def replay(self, event: str) -> None:
        """See `Host.replay`."""
        await self._opened.host.replay(event)

    async def copy(self, target: str) -> None:
        """See `Owners.copy`."""
        await self._opened.copy(Path(target))

    async def ping(self) -> str:
        """Read from the database."""
        await self._opened.host.dead_letters()
        return self._name

    async def stop(self) -> None:
        """Finish the transaction under way and close the database."""
        self._running.cancel()
        await asyncio.wait([self._running], timeout=_STOP_SECONDS)
        await self._opened.close()


class RayDirectory:
    """Implements `arbiters.kernel.directory.Directory` over the actors, across their restarts."""

    def __init__(self, *, patience: float = 15.0) -> None:
        self._actors = {name: NamedActor(name, patience=patience) for name in assembly.ARBITERS}

    def names(self) -> Sequence[str]:
        return tuple(self._actors)

    async def ask(self, arbiter: str, question: str, *, at_least: int = 0, **arguments: Any) -> Any:
        # A question changes nothing, so it may be put again. Waiting for an offset takes time.
        return await self._actor(arbiter).call(
            "ask", question, arguments, at_least, again=True, allow=10.0
        )

    async def dead_letters(self, arbiter: str) -> list[DeadLetter]:
        return await self._actor(arbiter).call("dead_letters", again=True)

    async def replay(self, arbiter: str, event: str) -> None:
        await self._actor(arbiter).call("replay", event, again=False, allow=60.0)

    def _actor(self, arbiter: str) -> NamedActor:
        try:
            return self._actors[arbiter]
        except KeyError:
            names = ", ".join(self._actors)
            raise NotFoundError(f"there is no arbiter {arbiter!r}; there are {names}") from None


class RayRuntime:
    """Implements `soma_agents.web.services.Runtime` over the bus and the arbiters."""

    def __init__(self) -> None:
        self.log = RayEventLog()
        self.directory = RayDirectory()
        self.clock, self.ids = SystemClock(), Uuid7()

    def owned(self) -> Sequence[str]:
        return assembly.ARBITERS

    async def copy(self, owner: str, target: Path) -> None:
        actor = NamedActor(BUS if owner == LOG else owner)
        # Not again: the half of a copy that a death left behind is in the way.
        await actor.call("copy", str(target), again=False, allow=_COPY_SECONDS)
