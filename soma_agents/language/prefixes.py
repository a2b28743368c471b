"""Keys and values of prompts read lately, so that the next reply starts sooner.

Kept in whole pieces, which are computed the same whatever follows them: a reply after a reused
prefix is bit for bit the one without. Tenants and adapters never see each other's.
"""

from collections import OrderedDict

from torch import Tensor

from soma_agents.language.cache import PromptCache
from soma_agents.language.mixed_lora import PackedLora
from soma_agents.language.requests import GenerationRequest

CHUNK = 128
"""Prompt tokens read between two decoding steps at most: how long running replies pause."""
PIECE = 16
"""Tokens that are kept together where a token is read the same whatever is read with it."""

Key = tuple[str, PackedLora | None, int, tuple[int, ...]]
"""Tenant, adapter (itself, not its name), where the piece begins, and all tokens up to its end."""


def chunk_end(request: GenerationRequest, start: int, size: int = CHUNK) -> int:
    """Where the chunk of the prompt that begins at `start` ends.

    Chunks end at multiples of their size and where the part shared with other prompts ends, so a
    prompt is computed the same in any company.
    """
    end = min((start // size + 1) * size, len(request.prompt))
    return request.shared if start < request.shared < end else end


class PrefixCache:
    """The pieces read last, as many as hold `tokens` tokens; the longest unused goes first.

    `piece` is their size: `CHUNK`, or less where chunks may begin anywhere.
    """

    def __init__(self, *, tokens: int, piece: int) -> None:
        self._piece = piece
        self._most = tokens // piece
        self._kept: OrderedDict[Key, list[Tensor]] = OrderedDict()

    def restore(
        self, request: GenerationRequest, lora: PackedLora | None, cache: PromptCache
    ) -> None:
        """Go on in `cache` with what is known of the prompt, but for its last token."""
        start = cache.length
        while (end := chunk_end(request, start, self._piece)) < len(request.prompt):
            key = (request.tenant, lora, start, request.prompt[:end])
            found = self._kept.get(key)
            if found is None:
                return
            self._kept.move_to_end(key)
            cache.append(found)
            start = end

    def keep(
        self, request: GenerationRequest, lora: PackedLora | None, start: int, cache: PromptCache
    ) -> None:
        """Remember the whole pieces from `start` to the end of `cache`."""
        while start < cache.length and self._most:
            end = chunk_end(request, start, self._piece)
            if end % self._piece and end != request.shared:
                return
            self._put((request.tenant, lora, start, request.prompt[:end]), cache.piece(start, end))
            start = end

    def _put(self, key: Key, piece: list[Tensor]) -> None:
        if key not in self._kept and len(self._kept) >= self._most:
            self._kept.popitem(last=False)
        self._kept[key] = piece
        self._kept.move_to_end(key)
