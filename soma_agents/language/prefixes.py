"""Keys and values of prompts read lately, so that the next reply starts sooner.

Kept in whole chunks, which are computed the same whatever follows them: a reply after a reused
prefix is bit for bit the one without. Tenants and adapters never see each other's.
"""

from collections import OrderedDict

from torch import Tensor

from soma_agents.language.cache import PromptCache
from soma_agents.language.mixed_lora import PackedLora
from soma_agents.language.requests import GenerationRequest

CHUNK = 128
"""Prompt tokens read between two decoding steps at most: how long running replies pause."""

Key = tuple[str, PackedLora | None, tuple[int, ...]]
"""Tenant, adapter (itself, not its name), and all tokens up to the end of the chunk."""


def chunk_end(request: GenerationRequest, start: int) -> int:
    """Where the chunk of the prompt that begins at `start` ends.

    Chunks end at multiples of CHUNK and where the part shared with other prompts ends, so a
    prompt is computed the same in any company.
    """
    end = min((start // CHUNK + 1) * CHUNK, len(request.prompt))
    return request.shared if start < request.shared < end else end


class PrefixCache:
    """The chunks read last, as many as hold `tokens` tokens; the longest unused goes first."""

    def __init__(self, *, tokens: int) -> None:
        self._most = tokens // CHUNK
        self._kept: OrderedDict[Key, list[Tensor]] = OrderedDict()

    def restore(
        self, request: GenerationRequest, lora: PackedLora | None, cache: PromptCache
    ) -> None:
        """Begin `cache` with the longest known prefix that leaves a token to compute."""
        while (end := chunk_end(request, cache.length)) < len(request.prompt):
            key = (request.tenant, lora, request.prompt[:end])
            found = self._kept.get(key)
            if found is None:
                return
            self._kept.move_to_end(key)
            cache.append(found)

    def keep(
        self, request: GenerationRequest, lora: PackedLora | None, start: int, cache: PromptCache
    ) -> None:
        """Remember the chunk from `start` that `cache` ends with, if it is a whole one."""
        end = cache.length
        whole = end % CHUNK == 0 or end == request.shared
        if not whole or self._most < 1:
            return
        key = (request.tenant, lora, request.prompt[:end])
        if key not in self._kept and len(self._kept) >= self._most:
            self._kept.popitem(last=False)
        self._kept[key] = cache.piece(start, end)
        self._kept.move_to_end(key)
