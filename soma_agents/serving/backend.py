"""What a specialist generates with: the engine in this process, or one that stands elsewhere."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Protocol, cast

from soma_agents.language.engine import EngineStats
from soma_agents.language.requests import Finished, GenerationRequest, Piece


class Backend(Protocol):
    """The part of `soma_agents.language.engine.Engine` that serving relies on."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Piece | Finished]:
        """Pieces of the reply, then how it finished; closing the iterator cancels.

        Raises:
            BusyError: there is no room for another request.
            InvalidError: the prompt does not fit.
            NotFoundError: the adapter is not loaded.
        """
        ...

    async def load_adapter(self, adapter: str, directory: Path) -> None:
        """Read an adapter so that requests can name it.

        Raises:
            NotFoundError, CorruptError, InvalidError: files are missing, damaged or foreign.
        """
        ...

    async def unload_adapter(self, adapter: str) -> None:
        """Forget an adapter once no request uses it."""
        ...

    def adapters(self) -> frozenset[str]:
        """Names of the adapters that are loaded."""
        ...

    async def use_cores(self, cores: tuple[int, ...]) -> None:
        """Decode on these cores alone from now on."""
        ...

    def stats(self) -> EngineStats:
        """Numbers worth watching: what is active, what waits, how fast it goes."""
        ...


def generation(
    backend: Backend, request: GenerationRequest
) -> AbstractAsyncContextManager[AsyncIterator[Piece | Finished]]:
    """A reply under way that is cancelled when the block is left."""
    return aclosing(cast("AsyncGenerator[Piece | Finished]", backend.generate(request)))
