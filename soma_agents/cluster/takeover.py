"""A reply that goes on with another engine when the one that was making it is gone.

With a seed an engine says the same again, token for token, in any company: the successor makes
the whole reply anew, and what was given already is left out.
"""

import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from arbiters.errors import UnavailableError
from soma_agents.language.requests import Finished, GenerationRequest, Piece
from soma_agents.language.sampling import TokenLogprob

TAKEOVERS = 3
"""Deaths that one reply may outlive."""
_SEED_BITS = 31


class EngineLostError(UnavailableError):
    """The engine that was making a reply is gone; another may make it."""


async def taken_over(
    stream: Callable[[GenerationRequest], AsyncIterator[Piece | Finished]],
    request: GenerationRequest,
) -> AsyncIterator[Piece | Finished]:
    """What `stream` yields, across its deaths.

    Raises:
        EngineLostError: it died once too often, or its successor says something else.
    """
    if request.sampling.seed is None:
        seeded = replace(request.sampling, seed=secrets.randbits(_SEED_BITS))
        request = replace(request, sampling=seeded)
    given = _Given()
    for deaths in range(TAKEOVERS + 1):
        try:
            async for item in given.beyond(stream(request)):
                yield item
        except EngineLostError:
            if deaths == TAKEOVERS:
                raise
        else:
            return


@dataclass
class _Given:
    """What the client has of a reply."""

    token_ids: list[int] = field(default_factory=list[int])
    text: str = ""

    async def beyond(
        self, again: AsyncIterator[Piece | Finished]
    ) -> AsyncIterator[Piece | Finished]:
        """A reply from its beginning, without what was given."""
        ids, logprobs, text = list[int](), list[TokenLogprob](), ""
        async for item in again:
            if isinstance(item, Finished):
                yield item
                continue
            ids += item.token_ids
            logprobs += item.logprobs
            text += item.text
            had, said = len(self.token_ids), len(self.text)
            if ids[:had] != self.token_ids[: len(ids)] or not text.startswith(
                self.text[: len(text)]
            ):
                raise EngineLostError(
                    "the engine is gone and another says something else; ask again"
                )
            if len(ids) > had or len(text) > said:
                self.token_ids, self.text = [*self.token_ids, *ids[had:]], self.text + text[said:]
                yield Piece(text[said:], tuple(ids[had:]), tuple(logprobs[had:]))
