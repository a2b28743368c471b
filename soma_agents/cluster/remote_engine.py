"""Engines as a deployment of their own, and the engine's interface over a handle to them.

For clusters, where gateway and engines run on different machines. Costs a hop a token.
"""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from arbiters.errors import SomaError
from soma_agents.settings import Settings

if TYPE_CHECKING:
    # They load torch, and the keeper, which only deploys, stays small.
    from soma_agents.language.engine import EngineStats
    from soma_agents.language.requests import Finished, GenerationRequest, Piece


class EngineReplica:
    """An engine in a process of its own."""

    async def __init__(self, settings: str, prepare: Callable[[str], None]) -> None:
        from soma_agents.runtime.engine import started_engine

        prepare("engine")
        self._model, self._engine = await started_engine(Settings.model_validate_json(settings))

    async def generate(
        self, request: "GenerationRequest", adapters: dict[str, str]
    ) -> "AsyncIterator[Piece | Finished]":
        """See `Engine.generate`. `adapters` are those there should be, with their directories."""
        for adapter in self._engine.adapters() - adapters.keys():
            await self._engine.unload_adapter(adapter)
        if request.adapter in adapters:
            await self.load_adapter(request.adapter, adapters[request.adapter])
        async for item in self._engine.generate(request):
            yield item

    async def load_adapter(self, adapter: str, directory: str) -> None:
        await self._engine.load_adapter(adapter, Path(directory))

    async def stats(self) -> "EngineStats":
        return self._engine.stats()

    async def check_health(self) -> None:
        """Decode a token."""
        from soma_agents.runtime.engine import speak

        await speak(self._engine, self._model)

    async def __del__(self) -> None:
        await self._engine.close()


class RemoteEngine:
    """The interface of `Engine` over a handle to an `EngineReplica`, across its restarts."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._directories: dict[str, str] = {}
        from soma_agents.language.engine import EngineStats

        self._stats = EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0.0)
        self._looking: asyncio.Future[None] | None = None

    def adapters(self) -> frozenset[str]:
        """Ids of the adapters that were loaded."""
        return frozenset(self._directories)

    async def load_adapter(self, adapter: str, directory: Path) -> None:
        """See `Engine.load_adapter`. The replicas read the directory: it must be shared.

        One of them tries it now, the others when they need it.
        """
        await _ours(self._handle.load_adapter.remote(adapter, str(directory)))
        self._directories[adapter] = str(directory)

    async def unload_adapter(self, adapter: str) -> None:
        """See `Engine.unload_adapter`; the replicas hear of it with their next request."""
        self._directories.pop(adapter, None)

    async def use_cores(self, cores: tuple[int, ...]) -> None:
        """Nothing: the cores here are not those of the engine's machine."""

    def stats(self) -> "EngineStats":
        """What the engine had counted a moment ago; asking brings the next answer here."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())
        return self._stats

    async def _look(self) -> None:
        with suppress(SomaError):
            self._stats = await _ours(self._handle.stats.remote())

    async def close(self) -> None:
        """Nothing: Serve stops the replica."""

    async def generate(self, request: "GenerationRequest") -> "AsyncIterator[Piece | Finished]":
        """See `Engine.generate`; what a replica leaves undone by its death another finishes."""
        from soma_agents.cluster.takeover import taken_over

        async with aclosing(taken_over(self._stream, request)) as items:
            async for item in items:
                yield item

    async def _stream(self, request: "GenerationRequest") -> "AsyncGenerator[Piece | Finished]":
        handle: Any = self._handle.options(stream=True)
        # From no context: whether a reply goes on when its client leaves is the gateway's to say.
        answer: Any = contextvars.Context().run(handle.generate.remote, request, self._directories)
        try:
            async for item in answer:
                yield item
        except (RayError, RayServeException) as error:
            raise _translated(error) from error
        finally:
            with suppress(Exception):
                answer.cancel()


async def _ours(answer: Any) -> Any:
    try:
        return await answer
    except (RayError, RayServeException) as error:
        raise _translated(error) from error


def _translated(error: Exception) -> SomaError:
    cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(cause, SomaError):
        return cause
    from soma_agents.cluster.takeover import EngineLostError

    return EngineLostError(f"the engine cannot be reached: {error}")
