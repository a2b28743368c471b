"""What a specialist generates with: the engine in this process, or one that stands elsewhere."""

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Protocol

from soma_agents.language.requests import Finished, GenerationRequest, Piece


class Backend(Protocol):
    """The part of `soma_agents.language.engine.Engine` that serving relies on."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece | Finished]:
        """Pieces of the reply, then how it finished; closing the iterator cancels.

        Raises:
            BusyError: there is no room for another request.
            InvalidError: the prompt does not fit, or the adapter is not loaded.
        """
        ...

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Read an adapter so that requests can name it.

        Raises:
            CorruptError: its files are damaged, or a weight is not a number.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter once no request uses it."""
        ...

    def adapters(self) -> frozenset[str]:
        """Names of the adapters that are loaded."""
        ...

    async def use_cores(self, cores: tuple[int, ...]) -> None:
        """Decode on these cores alone from now on."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Numbers worth watching: what is active, what waits, how fast it goes."""
        ...
