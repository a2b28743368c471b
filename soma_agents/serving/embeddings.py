"""The embedder in service: vectors for texts, made in a thread of its own."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from soma_agents.language.geometry.embedder import Embedder, fold
from soma_agents.language.geometry.features import Floats
from soma_agents.language.geometry.file import load

NAME = "soma-embed"
"""What clients call it."""

Made = TypeVar("Made")


class Embeddings:
    """Texts in, vectors out; one request at a time, beside the event loop."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embeddings")

    @classmethod
    def of(cls, file: str) -> "Embeddings":
        """With the embedder in a file, or the one that needs no training where it is "".

        Raises:
            NotFoundError, InvalidError, CorruptError: see `geometry.file.load`.
        """
        return cls(load(Path(file).expanduser()) if file else Embedder.untrained())

    @property
    def dim(self) -> int:
        """Length of a vector unless the request says."""
        return self._embedder.dim

    async def embed(
        self,
        texts: Sequence[str],
        *,
        dimensions: int | None,
        render: Callable[[Floats, int], Made],
    ) -> Made:
        """What `render` makes of the vectors and the number of words in the texts, in the thread too."""

        def work() -> Made:
            vectors, words = self._embedder.counted(texts)
            return render(fold(vectors, dimensions or self.dim), words)

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def near(self, text: str, texts: Sequence[str], top: int) -> list[tuple[int, float]]:
        """The numbers of the `top` texts most like `text`, with their cosines, the nearest first."""
        work = partial(self._embedder.near, text, texts, top)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """What has not begun is left."""
        self._thread.shutdown(wait=False, cancel_futures=True)
