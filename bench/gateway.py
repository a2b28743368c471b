"""What the gateway costs: time to first token over HTTP less the engine's own, and many clients.

`python -m bench.gateway` starts a SOMA of its own with `soma up`; with `--local` the same web
application runs in one process without Ray. The engine alone is measured in this process on the
very prompts that the gateway makes, in turn with requests over HTTP, so that both meet the same
machine.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2

from arbiters.events import ChatMessage
from bench.round import free_port
from policies.personality import DEFAULTS
from soma_agents.language.engine import Engine
from soma_agents.language.model import LanguageModel, load_model
from soma_agents.language.requests import Piece
from soma_agents.language.sampling import Sampling
from soma_agents.runtime.local import LocalRuntime
from soma_agents.serving.specialist import Known, Specialist
from soma_agents.settings import load_settings
from soma_agents.web.app import create_app
from soma_agents.web.services import Services

WARM_UP = 3
PAUSE_SECONDS = 0.1
"""Lets the threads of one engine go to sleep before the other's turn."""
REQUESTS = 30
ANSWER_TOKENS = 48
FEW, MANY = 4, 32
FEW_ROUNDS = 4
TARGET_MS = 25.0
QUESTION = "Question {}: what is a good way to spend a rainy afternoon at home?"
START_SECONDS = 120


# --- first tokens, and many clients --------------------------------------------------------


async def _first_piece(engine: Engine, model: LanguageModel, number: int) -> float:
    began = time.perf_counter()
    prepared = Specialist(model).chat(
        [ChatMessage(role="user", content=QUESTION.format(number))],
        Sampling(temperature=0.0, max_tokens=2),
        adapter=None,
        known=Known(personality=DEFAULTS),
        tenant="local",
    )
    first = 0.0
    async for item in engine.generate(prepared.request):
        if isinstance(item, Piece) and not first:
            first = time.perf_counter() - began
    return first


def _body(number: int, tokens: int) -> dict[str, Any]:
    return {
        "model": "soma",
        "messages": [{"role": "user", "content": QUESTION.format(number)}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def _stream(http: httpx2.AsyncClient, number: int, tokens: int) -> tuple[float, int]:
    """Seconds to the first text, and how many tokens came.

    Raises:
        RuntimeError: the request failed.
    """
    began, first, used = time.perf_counter(), 0.0, 0
    async with http.stream("POST", "/v1/chat/completions", json=_body(number, tokens)) as answer:
        if answer.is_error:
            raise RuntimeError(f"{answer.status_code}: {(await answer.aread())[:200]!r}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content") and not first:
                first = time.perf_counter() - began
            used = chunk.get("usage", {}).get("completion_tokens", used)
    return first, used


async def first_tokens(url: str) -> tuple[list[float], list[float]]:
    """Seconds to the first token of each request: over HTTP, and of the engine alone."""
    model = load_model("smollm2")
    engine = Engine(model)
    await asyncio.to_thread(engine.start)
    over_http: list[float] = []
    alone: list[float] = []
    async with httpx2.AsyncClient(base_url=url, timeout=120) as http:
        for number in range(WARM_UP + REQUESTS):
            over_http.append((await _stream(http, number, 2))[0])
            await asyncio.sleep(PAUSE_SECONDS)
            alone.append(await _first_piece(engine, model, number))
            await asyncio.sleep(PAUSE_SECONDS)
    await engine.close()
    return over_http[WARM_UP:], alone[WARM_UP:]


async def crowd(url: str, clients: int, rounds: int) -> dict[str, float]:
    """So many clients at once, each asking so often: tokens a second in total, and failures."""
    limits = httpx2.Limits(max_connections=clients)
    failures = tokens = 0

    async def client(number: int, http: httpx2.AsyncClient) -> None:
        nonlocal failures, tokens
        for turn in range(rounds):
            try:
                _, used = await _stream(http, 1000 * clients + 100 * number + turn, ANSWER_TOKENS)
                tokens += used
            except (RuntimeError, httpx2.HTTPError):
                failures += 1

    began = time.perf_counter()
    async with (
        httpx2.AsyncClient(base_url=url, timeout=170, limits=limits) as http,
        asyncio.TaskGroup() as group,
    ):
        for number in range(clients):
            group.create_task(client(number, http))
    rate = tokens / (time.perf_counter() - began)
    return {"clients": clients, "tokens_per_s": round(rate, 1), "failures": failures}


# --- a SOMA to measure ---------------------------------------------------------------------


SOMA = str(Path(sys.executable).with_name("soma"))


def start(home: str, port: int) -> None:
    """Start SOMA as users do."""
    subprocess.run([SOMA, "up", "--home", home, "--port", str(port), "--detach"], check=True)


@contextmanager
def soma_up(home: str, port: int) -> Iterator[str]:
    """SOMA as users run it."""
    start(home, port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run([SOMA, "down", "--home", home], check=True)


@contextmanager
def local_process(home: str, port: int) -> Iterator[str]:
    """The same application in one process of its own, without Ray."""
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "bench.gateway", "--serve", home, "--port", str(port)]
    with subprocess.Popen(command) as process:
        try:
            _wait_until_healthy(url, process)
            yield url
        finally:
            process.terminate()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{url}/healthz", timeout=30).is_success:
                return
        except httpx2.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"no SOMA at {url} within {START_SECONDS} s")


async def serve(home: str, port: int) -> None:
    """Run the web application over the local runtime until told to stop."""
    import uvicorn

    settings = load_settings(Path(home), overrides={"server": {"port": port}})
    runtime = await LocalRuntime.start(settings)
    model = load_model(settings.engine.model)
    engine = Engine(model, slots=settings.engine.slots)
    await asyncio.to_thread(engine.start)
    cores = sorted(os.sched_getaffinity(0))
    services = Services.over(settings, runtime, model, engine, cores=cores)
    config = uvicorn.Config(create_app(services), port=port, log_level="warning")
    await uvicorn.Server(config).serve()
    await engine.close()
    await runtime.close()


# --- the figure ----------------------------------------------------------------------------


def measure(url: str) -> dict[str, Any]:
    """First tokens, then few and many clients."""
    over_http, alone = asyncio.run(first_tokens(url))
    few = asyncio.run(crowd(url, FEW, FEW_ROUNDS))
    many = asyncio.run(crowd(url, MANY, 1))
    cost = 1e3 * (median(over_http) - median(alone))
    holds = many["tokens_per_s"] >= few["tokens_per_s"]
    return {
        "ok": cost <= TARGET_MS and holds and few["failures"] + many["failures"] == 0,
        "figure": round(cost, 2),
        "target": TARGET_MS,
        "unit": "ms to first token over HTTP less engine alone, p50",
        "engine_p50_ms": round(1e3 * median(alone), 2),
        "http_p50_ms": round(1e3 * median(over_http), 2),
        "http_p95_ms": round(1e3 * quantiles(over_http, n=20)[-1], 2),
        "few": few,
        "many": many,
    }


def main() -> int:
    """Run on a data directory of its own; the last line is the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--local", action="store_true", help="one process, without Ray")
    options.add_argument("--serve", metavar="HOME", help=argparse.SUPPRESS)
    options.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.serve:
        asyncio.run(serve(chosen.serve, chosen.port))
        return 0
    with tempfile.TemporaryDirectory(prefix="soma-bench-") as home:
        running = local_process if chosen.local else soma_up
        with running(home, free_port()) as url:
            result = measure(url)
    print(json.dumps(result | {"runtime": "local" if chosen.local else "ray"}))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
