"""Everything that runs on the head: made when it is missing, looked at, stopped in order."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import ray
import structlog
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME
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
_EVERYONE = (BUS, *assembly.ARBITERS)
_FIRST = _EVERYONE[:2]
"""As many as start while Serve's controller does."""
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

    def muster(self, names: Sequence[str] = _EVERYONE) -> None:
        """Make what is missing of these: at once, since each waits for what it needs by itself."""
        there = set(ray.util.list_named_actors())
        common = (self._json, self._prepare)
        for name in names:
            if name in there:
                continue
            if name == BUS:
                self._make(name, bus.Bus, *common, calls=bus.MAX_CALLS)
            else:
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

    async def serve(self) -> None:
        """Start Serve and the gateway unless they are there. Returns before the gateway is ready.

        Ray starts as many processes at once as there are cores, one after the other, and the way
        to the first answer is longest through the gateway. It is asked for before Serve's proxy
        listens; the first of the others fill the time in which Serve's controller starts.
        """
        started = asyncio.create_task(asyncio.to_thread(gateway.start_serve, self._settings))
        await _asked_for(SERVE_CONTROLLER_NAME, started)
        self.muster(_FIRST)
        await asyncio.to_thread(gateway.deploy, self._settings, self._prepare)
        await _asked_for("SERVE_REPLICA::", started)
        self.muster()
        await started

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
            for name in _EVERYONE:
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
        async with asyncio.TaskGroup() as group:
            pings = {name: group.create_task(_ping(name)) for name in _EVERYONE}
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
        for name in _EVERYONE:
            with suppress(RayError, ValueError):
                ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def restart(names: Iterable[str]) -> None:
    """Let Ray start these actors anew: they live but do not answer."""
    for name in names:
        log.warning("restarting a silent actor", actor=name)
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=False)


async def _asked_for(name: str, work: asyncio.Task[None]) -> None:
    """Wait until Ray has been asked for an actor whose name begins so; not beyond the end of `work`.

    Raises:
        Exception: what `work` failed with.
    """
    while not work.done():
        actors: Any = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
        if any(actor["name"].startswith(name) for actor in actors):
            return
        await asyncio.sleep(0.05)
    await work


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
