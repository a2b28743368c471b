"""SOMA in one process behind its HTTP interface, with an engine that says what it is told to."""

import asyncio
import dataclasses
import functools
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
import uvicorn

from arbiters.errors import BusyError
from soma_agents.language.engine import EngineStats
from soma_agents.language.gguf_file import GgufFile
from soma_agents.language.requests import Finished, GenerationRequest, Piece
from soma_agents.language.sou.card import Card
from soma_agents.language.source import base_id, locate
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.runtime.local import LocalRuntime
from soma_agents.settings import load_settings
from soma_agents.web.app import create_app
from soma_agents.web.services import Services


class ScriptedEngine:
    """Says `script` word by word. `hold` makes it wait before each word until released."""

    def __init__(self, script="I am glad to hear that."):
        self.script = script
        self.requests: list[GenerationRequest] = []
        self.reason = "stop"
        self.full = False
        self.hold: asyncio.Semaphore | None = None
        self.asked = asyncio.Event()
        self.cancelled = 0
        self.cores = ()
        self.broken: set[str] = set()
        self._adapters: set[str] = set()

    async def generate(self, request):
        if self.full:
            raise BusyError("the engine is full; ask again", retry_after=3)
        self.requests.append(request)
        self.asked.set()
        prompt, said = len(request.prompt), 0
        if request.adapter in self.broken:
            yield Finished("error", prompt, 0, 0.0, 0.0)
            return
        finished = False
        try:
            for word in self.script.split(" ")[: request.sampling.max_tokens]:
                if self.hold is not None:
                    await self.hold.acquire()
                yield Piece(word if said == 0 else f" {word}", (100 + said,))
                said += 1
            finished = True
        finally:
            self.cancelled += not finished
        words = len(self.script.split(" "))
        reason = self.reason if said == words else "length"
        yield Finished(reason, prompt, said, 0.01, 0.02)

    async def asked_often(self, times):
        """Wait for so many requests."""
        while len(self.requests) < times:
            self.asked.clear()
            await self.asked.wait()

    async def load_adapter(self, name, _):
        self._adapters.add(name)

    async def unload_adapter(self, name):
        self._adapters.discard(name)

    def adapters(self):
        return frozenset(self._adapters)

    async def use_cores(self, cores):
        self.cores = cores

    def stats(self):
        return EngineStats(32, 0, 0, 0, 0, 0, 0, 0, 0.0)


@dataclasses.dataclass(frozen=True)
class Size:
    context: int = 2048


@dataclasses.dataclass(frozen=True)
class Words:
    """A model without weights: the real tokenizer and the sizes that serving looks at."""

    id: str
    tokenizer: ChatTokenizer
    path: Path
    name: str = "soma-v0"
    card: Card = dataclasses.field(default_factory=Card)
    config: Size = Size()


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """With a file of its own instead of the weights, whose hash would take each start a second."""
    weights = tmp_path_factory.mktemp("model") / "words.gguf"
    weights.write_bytes(b"no weights")
    file = GgufFile(locate("smollm2"))
    try:
        return Words(id=base_id(weights), tokenizer=ChatTokenizer(file.metadata), path=weights)
    finally:
        file.close()


@dataclasses.dataclass
class Soma:
    """Everything a test may look at."""

    http: httpx2.AsyncClient
    runtime: LocalRuntime
    services: Services
    engine: ScriptedEngine
    app: object

    async def events(self, *types):
        batch = await self.runtime.log.read(0, types=frozenset(types) or None, limit=100_000)
        return list(batch.envelopes)

    def prompt(self):
        """What the engine was asked last."""
        return self.services.model.tokenizer.decode(self.engine.requests[-1].prompt)

    async def chat(self, *messages, **options):
        roles = ("user", "assistant")
        body = [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]
        return await self.http.post(
            "/v1/chat/completions", json={"model": "soma", "messages": body} | options
        )

    async def chat_as(self, secret, text):
        """The same with a key."""
        body = {"messages": [{"role": "user", "content": text}]}
        headers = {"Authorization": f"Bearer {secret}"}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)


@asynccontextmanager
async def running(
    home: Path, words, *, model=None, backend=None, trainer=None, examiner=None, **overrides
) -> AsyncGenerator[Soma]:
    model = model or words
    overrides["engine"] = {"model": str(model.path)} | overrides.get("engine", {})
    settings = load_settings(home, environ={}, overrides=overrides)
    runtime = await LocalRuntime.start(settings, trainer=trainer, examiner=examiner)
    engine = backend or ScriptedEngine()
    try:
        cores = (0, 1) if backend is None else sorted(os.sched_getaffinity(0))
        services = Services.over(settings, runtime, model, engine, cores=cores)
        app = create_app(services)
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
        ):
            yield Soma(http, runtime, services, engine, app)
    finally:
        await runtime.close()


@pytest.fixture(scope="session")
def started():
    """Start a SOMA in a data directory."""
    return running


@pytest.fixture
def soma_with(tmp_path, words):
    """Start SOMA with settings of its own."""
    return functools.partial(running, tmp_path, words)


@pytest.fixture
async def soma(soma_with):
    async with soma_with() as parts:
        yield parts


@asynccontextmanager
async def on_a_socket(soma: Soma) -> AsyncGenerator[str]:
    """The same application on a real socket, where clients can stream and leave."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(soma.app, lifespan="off", log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture(scope="session")
def listening():
    """Put a running SOMA on a socket."""
    return on_a_socket


@pytest.fixture
async def url(soma):
    async with on_a_socket(soma) as address:
        yield address
