"""The HTTP interface as one ASGI application. Nothing here knows Ray."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

from policies.access import RateRules
from soma_agents.web import (
    admin,
    embeddings,
    errors,
    feedback,
    health,
    learning,
    memory,
    openai,
    people,
    specialists,
    talk,
)
from soma_agents.web.auth import Authentication, check_exposure
from soma_agents.web.limits import BodyLimit, Places, RateLimit
from soma_agents.web.metrics import Measured, Meters
from soma_agents.web.services import Services

STATIC = Path(__file__).parent / "static"
BURST_SECONDS = 10
ANSWERS = frozenset({"/v1/chat/completions", "/v1/completions", "/api/reason"})
"""Paths that make the model speak."""
"""A caller may use so many seconds' worth of requests at once."""


def create_app(services: Services) -> FastAPI:
    """Put the interface over the parts. Its lifespan starts and closes them.

    Raises:
        InvalidError: it would be open to other machines; see `auth.check_exposure`.
    """
    check_exposure(services.settings, services.keys)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await services.start()
        try:
            yield
        finally:
            await services.close()

    app = FastAPI(
        title="SOMA",
        version=version("soma"),
        summary="An assistant that learns from you and can prove that it got better",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    app.state.health = health.Health()
    app.state.meters = Meters()
    conversing = (openai, embeddings, talk, memory, people, feedback)
    for part in (*conversing, learning, specialists, admin, health):
        app.include_router(part.router)
    _add_pages(app)
    errors.install(app)
    _add_middleware(app, services)
    return app


def _add_pages(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(STATIC / "docs.html")


def _add_middleware(app: FastAPI, services: Services) -> None:
    """From the inside out: a body is read only for callers who may come in."""
    server = services.settings.server
    limits = {"/api/import": server.import_body_bytes}
    app.add_middleware(BodyLimit, limit=server.max_body_bytes, limits=limits)
    burst = max(1.0, server.requests_per_minute * BURST_SECONDS / 60)
    rules = RateRules(per_minute=server.requests_per_minute, burst=burst)
    app.add_middleware(Places, capacity=services.settings.capacity, paths=ANSWERS)
    app.add_middleware(RateLimit, rules=rules)
    app.add_middleware(Authentication, settings=services.settings, keys=services.keys)
    app.add_middleware(Measured, meters=app.state.meters)
