"""What Prometheus counts. Names follow its conventions: base units, `_total`, `_seconds`."""

import time
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policies.routing import PERSONAL
from soma_agents.web.services import Services

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Meters:
    """The meters of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "soma_http_requests_total",
            "Requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.first_byte = Histogram(
            "soma_http_first_byte_seconds",
            "From a request's arrival to its answer's first byte",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.whole = Histogram(
            "soma_http_request_seconds",
            "From a request's arrival to its answer's last byte",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "soma_turns_in_flight", "Replies being made", registry=self.registry
        )
        self._events = Gauge("soma_log_events", "Events in the log", registry=self.registry)
        self._champion = Gauge(
            "soma_champion", "1 for the model in service", ["model"], registry=self.registry
        )
        self._engine = Gauge(
            "soma_engine",
            "The engines' own numbers, by who answers with them",
            ["specialist", "name"],
            registry=self.registry,
        )

    async def look(self, services: Services) -> None:
        """Set the gauges to what is true now."""
        self._in_flight.set(services.gateway.in_flight)
        self._events.set(await services.log.end())
        self._champion.clear()
        self._champion.labels(services.rollout.lineup.champion.name).set(1)
        self._engine.clear()  # a specialist's engine may have been closed meanwhile
        engines = {PERSONAL: services.engine.stats()} | services.specialists.stats()
        for specialist, stats in engines.items():
            for name, value in asdict(stats).items():
                self._engine.labels(specialist, name).set(value)


class Measured:
    """Counts requests and their times by route, never by the path a client made up."""

    def __init__(self, app: ASGIApp, *, meters: Meters) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status, first = 500, None

        async def watch(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status = message["status"]
            elif first is None:
                first = time.perf_counter() - started
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._meters.requests.labels(scope["method"], route, status).inc()
            self._meters.whole.labels(route).observe(time.perf_counter() - started)
            if first is not None:
                self._meters.first_byte.labels(route).observe(first)
