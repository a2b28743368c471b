"""SOMA in one process, without Ray (`cluster.runtime = "local"`): for small machines and tests."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack

import uvicorn

from soma_agents.app.schedule import Schedule
from soma_agents.evaluation.examiner import LocalExaminer
from soma_agents.runtime.engine import started_engine
from soma_agents.runtime.local import LocalRuntime
from soma_agents.settings import Settings
from soma_agents.training.trainer import LocalTrainer
from soma_agents.web.app import create_app
from soma_agents.web.services import Services

ALIVE_SECONDS = 1.0
_DRAIN_SECONDS = 10


async def run_alone(settings: Settings, stop: asyncio.Event, report: Callable[[str], None]) -> None:
    """Start everything, report `ready`, go on until `stop`, then close in order.

    Raises:
        SomaError: something did not start.
    """
    async with AsyncExitStack() as started:
        runtime = await LocalRuntime.start(
            settings, trainer=LocalTrainer(settings), examiner=LocalExaminer(settings)
        )
        started.push_async_callback(runtime.close)
        model, engine = await started_engine(settings)
        started.push_async_callback(engine.close)
        cores = sorted(os.sched_getaffinity(0))
        services = Services.over(settings, runtime, model, engine, cores=cores)
        schedule = Schedule(settings, runtime.publisher, runtime.log, runtime.clock)
        server = _server(settings, services)
        serving = asyncio.create_task(server.serve())
        schedule.start()
        try:
            await _watch(server, serving, stop, report)
        finally:
            schedule.stop()
            await services.gateway.drain(_DRAIN_SECONDS)
            server.should_exit = True
            await asyncio.wait([serving])


def _server(settings: Settings, services: Services) -> uvicorn.Server:
    config = uvicorn.Config(
        create_app(services),
        host=settings.server.host,
        port=settings.server.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    return uvicorn.Server(config)


async def _watch(
    server: uvicorn.Server,
    serving: asyncio.Task[None],
    stop: asyncio.Event,
    report: Callable[[str], None],
) -> None:
    """Say `ready` once and `running` each second while there is a server and no wish to stop."""
    ready = False
    stopping = asyncio.create_task(stop.wait())
    while not (stopping.done() or serving.done()):
        await asyncio.wait(
            [stopping, serving], timeout=ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if server.started and not ready:
            ready = True
            report("ready")
        elif not stopping.done():
            report("running" if ready else "starting")
    stopping.cancel()
    if serving.done():
        await serving
