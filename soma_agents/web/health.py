"""`/healthz` does real work; `/metrics` counts it."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from arbiters.errors import BusyError, SomaError
from soma_agents.language.requests import Finished, GenerationRequest
from soma_agents.language.sampling import Sampling
from soma_agents.serving.backend import generation
from soma_agents.web.dependencies import Parts
from soma_agents.web.services import Services

log = structlog.get_logger(__name__)
router = APIRouter(tags=["Health"])

FRESH_SECONDS = 5.0
DEADLINE_SECONDS = 20.0
"""A token takes milliseconds; while everything else decodes too it may take seconds."""


@dataclass(slots=True)
class Health:
    """The last check, kept for a few seconds so that checking is not a load of its own."""

    checked: float = float("-inf")
    problem: str = "not checked yet"
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def problem_of(self, services: Services) -> str:
        """What is wrong, or ''."""
        async with self.lock:
            if time.monotonic() - self.checked > FRESH_SECONDS:
                self.problem = await _check(services)
                self.checked = time.monotonic()
            return self.problem


async def _check(services: Services) -> str:
    """Decode one token and reach the log, within the deadline."""
    request = GenerationRequest(
        prompt=tuple(services.model.tokenizer.encode("Hello")),
        sampling=Sampling(temperature=0.0, max_tokens=1),
        adapter=None,
    )
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await services.log.end()
            async with generation(services.engine, request) as items:
                async for item in items:
                    if isinstance(item, Finished) and item.reason == "error":
                        return "the engine broke off its test"
    except TimeoutError:
        return f"no token within {DEADLINE_SECONDS:g} seconds"
    except BusyError:
        return ""  # full of work is not ill
    except SomaError as error:
        return str(error)
    return ""


@router.get("/healthz")
async def healthz(request: Request, services: Parts) -> Response:
    """200 when the engine gives a token and a model is in service, else 503 and why."""
    health: Health = request.app.state.health
    problem = await health.problem_of(services)
    if problem:
        log.error("not healthy", problem=problem)
        return JSONResponse({"status": "ill", "problem": problem}, status_code=503)
    champion = services.rollout.lineup.champion
    body: dict[str, Any] = {"status": "ok", "champion": champion.name}
    return JSONResponse(body)


@router.get("/metrics")
async def metrics(request: Request, services: Parts) -> Response:
    """Prometheus's text format."""
    meters = request.app.state.meters
    await meters.look(services)
    return Response(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)
