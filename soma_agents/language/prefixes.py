"""Keys and values of prompts read lately, so that the next turn of a conversation starts later.

Kept in whole chunks, which are computed the same whatever follows them: a reply after a reused
prefix is bit for bit the one without. Tenants and adapters never see each other's.
"""

from collections import OrderedDict

from torch import Tensor

from soma_agents.language.cache import PromptCache
from soma_agents.language.mixed_lora import PackedLora

Key = tuple[str, PackedLora | None, tuple[int, ...]]
"""Tenant, adapter (itself, not its name), and all tokens up to the end of the chunk."""


class PrefixCache:
    """The chunks read last, at most `tokens` tokens of them; the longest unused goes first."""

    def __init__(self, *, chunk: int, tokens: int) -> None:
        self._chunk = chunk
        self._most = tokens // chunk
        self._kept: OrderedDict[Key, list[Tensor]] = OrderedDict()

    def restore(
        self, tenant: str, lora: PackedLora | None, prompt: tuple[int, ...], cache: PromptCache
    ) -> None:
        """Begin `cache` with the longest known prefix that leaves a token to compute."""
        for end in range(self._chunk, len(prompt), self._chunk):
            key = (tenant, lora, prompt[:end])
            found = self._kept.get(key)
            if found is None:
                return
            self._kept.move_to_end(key)
            cache.append(found)

    def keep(
        self, tenant: str, lora: PackedLora | None, prompt: tuple[int, ...], cache: PromptCache
    ) -> None:
        """Remember the chunk that `cache` ends with, if it is a whole one."""
        end = cache.length
        key = (tenant, lora, prompt[:end])
        if end % self._chunk or self._most < 1:
            return
        if key not in self._kept and len(self._kept) >= self._most:
            self._kept.popitem(last=False)
        self._kept[key] = cache.piece(end - self._chunk, end)
        self._kept.move_to_end(key)
