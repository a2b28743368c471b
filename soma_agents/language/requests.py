"""What goes into the engine and what comes out of it."""

from dataclasses import dataclass
from typing import Literal

from soma_agents.language.sampling import Sampling, TokenLogprob

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt to go on with.

    `adapter` is one that was loaded, None is the base model alone. Other prompts of the tenant
    often begin with the first `shared` tokens of this one: they are kept for them.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: str | None = None
    tenant: str = "local"
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of a reply, with the tokens that were chosen since the last piece.

    Text that may yet turn out to begin a stop string, or is half a character, comes later.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a reply. Times are seconds since the engine took the request."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    total_s: float
