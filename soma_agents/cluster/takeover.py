"""A reply that goes on with another engine when the one that was making it is gone.

With a seed an engine says the same again, token for token, in any company: the successor makes
the whole reply anew, and what was given already is left out.
"""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from arbiters.errors import UnavailableError
from soma_agents.language.requests import Finished, GenerationRequest, Piece

TAKEOVERS = 3
"""Deaths that one reply may outlive."""
_SEED_BITS = 31


class EngineLostError(UnavailableError):
    """The engine that was making a reply is gone; another may make it."""


async def taken_over(
    stream: Callable[[GenerationRequest], AsyncGenerator[Piece | Finished]],
    request: GenerationRequest,
) -> AsyncGenerator[Piece | Finished]:
    """What `stream` yields, across its deaths.

    Raises:
        UnavailableError: it died once too often, or its successor says something else.
    """
    if request.sampling.seed is None:
        seeded = replace(request.sampling, seed=secrets.randbits(_SEED_BITS))
        request = replace(request, sampling=seeded)
    given = _Given()
    for deaths in range(TAKEOVERS + 1):
        try:
            async with aclosing(stream(request)) as items:
                async for item in given.beyond(items):
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
        place = shown = 0
        async for item in again:
            if isinstance(item, Finished):
                yield item
                continue
            ids, text = list(item.token_ids), item.text
            had, said = self.token_ids[place : place + len(ids)], self.text[shown:][: len(text)]
            if ids[: len(had)] != had or not text.startswith(said):
                raise UnavailableError("the engine is gone, another says something else; ask again")
            place, shown = place + len(ids), shown + len(text)
            fresh, words = ids[len(had) :], text[len(said) :]
            if fresh or words:
                self.token_ids += fresh
                self.text += words
                yield Piece(words, tuple(fresh), item.logprobs[len(had) :])
