"""One request on its way through the engine."""

import asyncio
import time
from dataclasses import dataclass, field

from soma_agents.language.cache import PromptCache
from soma_agents.language.drafts import Drafter
from soma_agents.language.mixed_lora import PackedLora
from soma_agents.language.reply import Reply
from soma_agents.language.requests import Finished, FinishReason, GenerationRequest, Piece
from soma_agents.language.sampling import Sampler


@dataclass(eq=False, slots=True)
class Sequence:
    """A request, what it has become so far, and where its pieces go.

    Only the decoding thread touches it, but for `cancelled`, `loop` and `outbox`.
    """

    request: GenerationRequest
    lora: PackedLora | None
    sampler: Sampler
    reply: Reply
    loop: asyncio.AbstractEventLoop
    limit: int
    """Tokens it may generate."""
    outbox: asyncio.Queue[Piece | Finished] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    submitted: float = field(default_factory=time.perf_counter)
    first_token: float = 0.0
    generated: int = 0
    token: int = 0
    """The newest token, which is not in the cache yet."""
    cache: PromptCache | None = None
    """While the prompt is being read."""
    drafter: Drafter | None = None
    """Once it is, where drafts can be checked."""

    @property
    def size(self) -> int:
        """Tokens it may come to hold in the cache."""
        return len(self.request.prompt) + self.limit

    def finished(self, reason: FinishReason) -> Finished:
        """Its end, timed now."""
        return Finished(
            reason=reason,
            prompt_tokens=len(self.request.prompt),
            completion_tokens=self.generated,
            first_token_s=self.first_token,
            total_s=time.perf_counter() - self.submitted,
        )
