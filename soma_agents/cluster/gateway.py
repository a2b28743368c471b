"""The gateway behind Ray Serve: one replica with the engine in it, or apart from it.

What a replica needs (torch, FastAPI) is imported there: the keeper, which deploys it, stays small.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from soma_agents.cluster import lean
from soma_agents.cluster.arbiters import RayRuntime
from soma_agents.cluster.names import APPLICATION
from soma_agents.cluster.remote_engine import EngineReplica, RemoteEngine
from soma_agents.settings import Settings

LIGHT_REQUESTS = 64
"""Requests at once that need no engine: lists, feedback, followed logs."""
HEALTH_PERIOD_S = 10.0
HEALTH_TIMEOUT_S = 45.0
_FLUSH_SECONDS = 0.5
"""For the last words to get through the proxy."""
LOGGING = LoggingConfig(encoding="JSON", log_level="WARNING", enable_access_log=False)
KEEP_ALIVE_S = 75
"""Longer than clients keep connections, so that none is closed as it is used again."""


@serve.ingress()
class GatewayReplica:
    """The web application in a replica. With `engine` the model's weights are over there."""

    async def __init__(
        self, settings: str, prepare: Callable[[str], None], engine: DeploymentHandle | None = None
    ) -> None:
        from soma_agents.language.model import load_model
        from soma_agents.runtime.engine import speak, started_engine

        prepare("gateway")
        lean.permit("pyarrow")
        self._settings = Settings.model_validate_json(settings)
        self._engine: Any
        if engine is None:
            self._model, self._engine = await started_engine(self._settings)
        else:
            self._model = load_model(self._settings.engine.model)
            # Only sizes and tokenizer are needed here.
            self._model.transformer.to("meta")
            self._engine = RemoteEngine(engine)
            await speak(self._engine, self._model)

    def __serve_build_asgi_app__(self) -> Any:
        from soma_agents.web.app import create_app
        from soma_agents.web.services import Services

        cores = sorted(os.sched_getaffinity(0))
        self._services = Services.over(
            self._settings, RayRuntime(), self._model, self._engine, cores=cores
        )
        return create_app(self._services)

    async def drain(self, seconds: float) -> None:
        """See `serving.gateway.Gateway.drain`."""
        await self._services.gateway.drain(seconds)
        await asyncio.sleep(_FLUSH_SECONDS)

    async def check_health(self) -> None:
        """Decode a token; Serve replaces a replica that cannot."""
        from soma_agents.runtime.engine import speak

        await speak(self._engine, self._model)

    async def __del__(self) -> None:
        await self._engine.close()


def start_serve(settings: Settings) -> None:
    """Start Serve unless it is there, and wait until its proxy listens."""
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(
            host=settings.server.host,
            port=settings.server.port,
            request_timeout_s=settings.server.request_timeout_s,
            keep_alive_timeout_s=KEEP_ALIVE_S,
        ),
        logging_config=LOGGING,
    )


def deploy(settings: Settings, prepare: Callable[[str], None]) -> None:
    """Start the application unless it is there, once Serve's controller is; does not wait for it.

    A running application is never deployed again: new models go in beside the old ones.
    """
    target = serve.RunTarget(
        _application(settings, prepare), name=APPLICATION, logging_config=LOGGING
    )
    serve.run_many(
        [target],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _application(settings: Settings, prepare: Callable[[str], None]) -> serve.Application:
    server, json = settings.server, settings.model_dump_json()
    requests, capacity = settings.engine.slots + server.max_waiting, settings.capacity
    options: dict[str, Any] = {
        "num_replicas": 1,
        "ray_actor_options": {"num_cpus": 1},
        "max_ongoing_requests": requests + LIGHT_REQUESTS,
        "max_queued_requests": requests,
        "graceful_shutdown_timeout_s": server.request_timeout_s,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "max_constructor_retry_count": 2,
    }
    gateway: Any = serve.deployment(GatewayReplica, name="Gateway")
    gateway = gateway.options(**options)
    if not settings.cluster.engines:
        return gateway.bind(json, prepare)
    engine: Any = serve.deployment(EngineReplica, name="Engine")
    engine = engine.options(**options | {"num_replicas": settings.cluster.engines})
    light = gateway.options(
        ray_actor_options={"num_cpus": 0}, max_ongoing_requests=capacity + LIGHT_REQUESTS
    )
    return light.bind(json, prepare, engine.bind(json, prepare))
