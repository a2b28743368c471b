"""The keeper: the process that has Ray's head below it and everything of ours on it.

The supervisor starts it, reads what it reports and starts it anew when it ends; so that whatever
Ray does to a driver whose cluster is gone, the supervisor lives. Run as a module by it alone: the
settings come on standard input, reports go to the file descriptor named as the argument, one JSON
object a line.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
from typing import Any

import structlog

from arbiters.errors import SomaError
from arbiters.kernel.bus import Publisher
from soma_agents.app import logs
from soma_agents.app.schedule import Schedule
from soma_agents.cluster import lean
from soma_agents.settings import Settings

LOOK_SECONDS = 1.0
PING_EVERY = 10
"""Looks between two rounds of pings."""
SILENT_LIMIT = 3
"""Rounds an actor may be silent before it is restarted; all silent so long is a dead cluster."""

log = structlog.get_logger(__name__)


class Keeper:
    """Starts, watches and drains one cluster."""

    def __init__(self, settings: Settings, reports: int) -> None:
        self._settings = settings
        self._reports = reports
        self._silences: dict[str, int] = {}
        self._ours = True

    def report(self, state: str, **more: Any) -> None:
        """Tell the supervisor; also its sign that this process is alive."""
        os.write(self._reports, json.dumps({"state": state, **more}).encode() + b"\n")

    async def run(self) -> None:
        """Start everything, say `ready`, watch until told to stop, drain.

        Raises:
            SomaError: something did not start, or the cluster is gone.
        """
        stop = asyncio.Event()
        _stop_on_signals(stop)
        await asyncio.to_thread(self._look)
        if self._settings.cluster.runtime == "local":
            from soma_agents.app.alone import run_alone

            await run_alone(self._settings, stop, self.report)
        else:
            await self._run_on_ray(stop)

    def _look(self) -> None:
        """Say what is wrong with the data here: an actor that cannot start tells nobody why."""
        from soma_agents.app.verify import look

        look(self._settings)
        if self._settings.embeddings.model:
            from soma_agents.serving.embeddings import Embeddings

            Embeddings.of(self._settings.embeddings.model)

    async def _run_on_ray(self, stop: asyncio.Event) -> None:
        from soma_agents.cluster import head
        from soma_agents.cluster.crew import Crew

        running = head.start(self._settings)
        self._ours = running.ours
        _stop_on_signals(stop)  # Ray installed its own handlers when it started
        self.report("ray", address=running.address, dashboard=running.dashboard)
        crew = Crew(self._settings, logs.preparer(self._settings))
        work = asyncio.create_task(self._work(crew))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([work, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if work.done():
            await work
        work.cancel()
        await asyncio.wait([work])
        self.report("draining")
        await crew.drain()
        head.stop()

    async def _work(self, crew: Any) -> None:
        await crew.serve()
        seconds = self._settings.cluster.start_timeout_s
        try:
            async with asyncio.timeout(seconds):
                await self._while_alive(crew.ready())
        except TimeoutError:
            raise SomaError(
                f"not everything was ready in {seconds:g} s; see the logs, or raise "
                "cluster.start_timeout_s on a slow machine"
            ) from None
        schedule = self._schedule()
        schedule.start()
        try:
            self.report("ready")
            await self._watch(crew)
        finally:
            schedule.stop()

    def _schedule(self) -> Schedule:
        from soma_agents.cluster.bus import RayEventLog
        from soma_agents.storage.identifiers import SystemClock, Uuid7

        clock, events = SystemClock(), RayEventLog()
        publisher = Publisher(log=events, clock=clock, ids=Uuid7(), producer="schedule")
        return Schedule(self._settings, publisher, events, clock)

    async def _while_alive(self, work: Any) -> None:
        """Await `work`, but not longer than Ray lives."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=LOOK_SECONDS)
                self._check_head()
                self.report("starting")
            await task
        finally:
            task.cancel()

    def _check_head(self) -> None:
        from soma_agents.cluster import head

        if self._ours and (gone := head.missing()):
            raise SomaError(f"Ray's {' and '.join(gone)} died")

    async def _watch(self, crew: Any) -> None:
        looks = 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._check_head()
            looks += 1
            if looks % PING_EVERY == 0:
                await self._look_closely(crew)
            self.report("running")

    async def _look_closely(self, crew: Any) -> None:
        """Make what is missing, restart what is silent."""
        from soma_agents.cluster import crew as crew_

        await asyncio.to_thread(crew.muster)
        if (await asyncio.to_thread(crew.gateway_state))[0] == "MISSING":
            log.warning("the gateway is missing; deploying it again")
            await crew.serve()
        silent = await crew.silent()
        self._silences = {name: self._silences.get(name, 0) + 1 for name in silent}
        stuck = [name for name, rounds in self._silences.items() if rounds >= SILENT_LIMIT]
        if stuck:
            await asyncio.to_thread(crew_.restart, stuck)
            for name in stuck:
                del self._silences[name]


def _stop_on_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the supervisor dies (Linux; prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, SomaError) else f"{type(error).__name__}: {error}"


def main() -> None:
    """Run a keeper; the exit code says nothing, the last report says all."""
    _die_with_parent()
    settings = Settings.model_validate_json(sys.stdin.readline())
    logs.setup(settings, "keeper")
    lean.forgo()
    keeper = Keeper(settings, int(sys.argv[1]))
    try:
        asyncio.run(keeper.run())
        keeper.report("stopped")
    except Exception as error:
        log.exception("the keeper failed")
        keeper.report("failed", why=_reason(error))
        # Ray's threads may hang with their cluster gone; nothing here is worth waiting for.
        os._exit(1)


if __name__ == "__main__":
    main()
