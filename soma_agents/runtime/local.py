"""All of SOMA's arbiters in one process: for tests and for looking."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from arbiters.errors import NotFoundError
from arbiters.kernel.bus import Publisher
from arbiters.kernel.host import Host
from arbiters.ports import Clock, Examiner, Ids, Trainer
from arbiters.records import DeadLetter
from soma_agents.runtime.assembly import ARBITERS, Opened, build_host
from soma_agents.settings import Settings
from soma_agents.storage.chained_log import ChainedLog
from soma_agents.storage.engines import open_log
from soma_agents.storage.identifiers import SystemClock, Uuid7


class LocalDirectory:
    """Implements `arbiters.kernel.directory.Directory` over hosts in this process."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        self._hosts = hosts

    def names(self) -> Sequence[str]:
        return tuple(self._hosts)

    async def ask(self, arbiter: str, question: str, *, at_least: int = 0, **arguments: Any) -> Any:
        return await self._host(arbiter).ask(question, arguments, at_least=at_least)

    async def dead_letters(self, arbiter: str) -> list[DeadLetter]:
        return await self._host(arbiter).dead_letters()

    async def replay(self, arbiter: str, event: str) -> None:
        await self._host(arbiter).replay(event)

    def _host(self, arbiter: str) -> Host:
        if arbiter not in self._hosts:
            raise NotFoundError(f"there is no arbiter {arbiter!r}; there are {sorted(self._hosts)}")
        return self._hosts[arbiter]


class LocalRuntime:
    """The log, the arbiters and their hosts, running as tasks until closed."""

    def __init__(
        self,
        settings: Settings,
        log: ChainedLog,
        opened: dict[str, Opened],
        *,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self.settings = settings
        self.log = log
        self.clock = clock
        self.ids = ids
        self.directory = LocalDirectory({name: one.host for name, one in opened.items()})
        self.publisher = Publisher(log=log, clock=clock, ids=ids, producer="local")
        self._opened = opened
        self._tasks = [asyncio.create_task(one.host.run()) for one in opened.values()]

    @classmethod
    async def start(
        cls,
        settings: Settings,
        *,
        trainer: Trainer | None = None,
        examiner: Examiner | None = None,
        clock: Clock | None = None,
        ids: Ids | None = None,
    ) -> "LocalRuntime":
        """Open every database and run every arbiter; without a trainer there is no workshop.

        If one cannot be opened, none stays open.
        """
        clock, ids = clock or SystemClock(), ids or Uuid7()
        opened = dict[str, Opened]()
        async with AsyncExitStack() as opening:
            log = await open_log(settings)
            opening.push_async_callback(log.close)
            for name in ARBITERS:
                if name == "workshop" and trainer is None:
                    continue
                opened[name] = await build_host(
                    name,
                    settings,
                    log=log,
                    trainer=trainer,
                    examiner=examiner,
                    clock=clock,
                    ids=ids,
                )
                opening.push_async_callback(opened[name].close)
            opening.pop_all()
        return cls(settings, log, opened, clock=clock, ids=ids)

    def owned(self) -> Sequence[str]:
        """See `Owners.owned`."""
        return tuple(self._opened)

    async def copy(self, owner: str, target: Path) -> None:
        """See `Owners.copy`."""
        await (self._opened[owner].copy if owner in self._opened else self.log.copy)(target)

    async def close(self) -> None:
        """Finish the transactions under way, then close every file."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for one in self._opened.values():
            await one.close()
        await self.log.close()
