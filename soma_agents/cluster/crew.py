"""Everything that runs on the head: made when it is missing, looked at, stopped in order."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import ray
import structlog
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from arbiters.errors import SomaError
from soma_agents.cluster import arbiters, bus, gateway
from soma_agents.cluster.names import APPLICATION, BUS, NAMESPACE, class_name
from soma_agents.runtime import assembly
from soma_agents.settings import Settings

PING_SECONDS = 20.0
DRAIN_SECONDS = 5.0
REPLY_SECONDS = 10.0
"""For replies under way to come to their end; those that do not are broken off with a word."""
_IN_ROW_SECONDS = 5.0
"""At most for Serve to ask for the gateway's process."""
_FAILED = ("DEPLOY_FAILED", "NOT_STARTED")

log = structlog.get_logger(__name__)


class Crew:
    """The bus, the arbiters and the gateway of one SOMA.

    Args:
        settings: of this SOMA.
        prepare: called with its name in each new process, to set up logging.
    """

    def __init__(self, settings: Settings, prepare: Callable[[str], None]) -> None:
        self._settings = settings
        self._json = settings.model_dump_json()
        self._prepare = prepare

    # --- making ----------------------------------------------------------------------------

    def muster(self) -> None:
        """Make what is missing: all at once, since each waits for what it needs by itself."""
        there = set(ray.util.list_named_actors())
        common = (self._json, self._prepare)
        if BUS not in there:
            self._make(BUS, bus.Bus, *common, calls=bus.MAX_CALLS)
        for name in assembly.ARBITERS:
            if name not in there:
                self._make(name, arbiters.ArbiterActor, name, *common, calls=arbiters.MAX_CALLS)

    def _make(self, name: str, base: type, *arguments: Any, calls: int) -> None:
        """Make a detached actor. Its class bears its name, for the dashboard."""
        ray.remote(type(class_name(name), (base,), {})).options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=calls,
            num_cpus=0,
            # Ray would keep a record of each call: the head grew by 6 MB a minute under talk.
            enable_task_events=False,
            # The databases are on this machine.
            scheduling_strategy=NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            ),
        ).remote(*arguments)

    def serve(self) -> None:
        """Start Serve and the gateway unless they are there. Returns before they are ready.

        Ray starts as many processes at once as there are cores, one after the other: whoever has
        the longest way to go is waited for here until its place in the row is taken.
        """
        gateway.deploy(self._settings, self._prepare)
        deadline = time.monotonic() + _IN_ROW_SECONDS
        while not _replica_is_made() and time.monotonic() < deadline:
            time.sleep(0.05)

    # --- looking ---------------------------------------------------------------------------

    def gateway_state(self) -> tuple[str, str]:
        """The application's status in Serve's words (`RUNNING` …), and its message.

        `MISSING` when Serve or the application is not there.
        """
        try:
            application = serve.status().applications.get(APPLICATION)
        except (RayError, RayServeException, ConnectionError) as error:
            return "MISSING", str(error)
        if application is None:
            return "MISSING", ""
        words = [application.message]
        words += [deployment.message for deployment in application.deployments.values()]
        return str(application.status.value), " ".join(word for word in words if word)

    async def ready(self) -> None:
        """Wait until bus and arbiters answer and the gateway has shown that its model speaks.

        Raises:
            SomaError: the gateway cannot be deployed; the message has its reason.
        """
        async with asyncio.TaskGroup() as group:
            for name in (BUS, *assembly.ARBITERS):
                group.create_task(_answering(name))
            group.create_task(self._gateway_running())

    async def _gateway_running(self) -> None:
        while True:
            state, message = await asyncio.to_thread(self.gateway_state)
            if state == "RUNNING":
                return
            if state in _FAILED:
                raise SomaError(f"the gateway does not start: {message}")
            await asyncio.sleep(0.5)

    async def silent(self) -> list[str]:
        """Those of bus and arbiters that do not answer a ping."""
        names = (BUS, *assembly.ARBITERS)
        async with asyncio.TaskGroup() as group:
            pings = {name: group.create_task(_ping(name)) for name in names}
        return [name for name, ping in pings.items() if not ping.result()]

    # --- stopping --------------------------------------------------------------------------

    async def drain(self) -> None:
        """Gateway, then arbiters, then bus: nobody loses whom it still has to tell something."""
        # Serve's own shutdown cuts off whoever still listens.
        await _within(REPLY_SECONDS + DRAIN_SECONDS + 1, "replies", _replies_end())
        await _within(DRAIN_SECONDS, "gateway", serve.shutdown_async())
        async with asyncio.TaskGroup() as group:
            for name in assembly.ARBITERS:
                group.create_task(_within(DRAIN_SECONDS, name, _told(name, "stop")))
        await _within(DRAIN_SECONDS, BUS, _told(BUS, "stop"))
        # A cluster that is not ours lives on; nothing of ours must stay in it.
        for name in (BUS, *assembly.ARBITERS):
            with suppress(RayError, ValueError):
                ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def restart(names: Iterable[str]) -> None:
    """Let Ray start these actors anew: they live but do not answer."""
    for name in names:
        log.warning("restarting a silent actor", actor=name)
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=False)


def _replica_is_made() -> bool:
    """Whether Serve has asked Ray for the process of a replica."""
    actors: Any = ray.util.list_named_actors(all_namespaces=True)
    return any(actor["name"].startswith("SERVE_REPLICA::") for actor in actors)


async def _answering(name: str) -> None:
    while True:
        if await _ping(name):
            return
        await asyncio.sleep(0.2)


async def _ping(name: str) -> bool:
    try:
        async with asyncio.timeout(PING_SECONDS):
            await _told(name, "ping")
    except (RayError, ValueError, TimeoutError, SomaError):
        return False
    return True


async def _told(name: str, method: str) -> None:
    await getattr(ray.get_actor(name, namespace=NAMESPACE), method).remote()


async def _replies_end() -> None:
    handle: Any = await asyncio.to_thread(serve.get_app_handle, APPLICATION)
    await handle.drain.remote(REPLY_SECONDS)


async def _within(seconds: float, what: str, work: Any) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except (RayError, RayServeException, ValueError, TimeoutError) as error:
        log.warning("did not stop by itself", what=what, error=repr(error))
