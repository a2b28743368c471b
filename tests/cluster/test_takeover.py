"""A reply outlives the engine that makes it, and the client cannot tell."""

from contextlib import aclosing

import pytest

from arbiters.errors import InvalidError, UnavailableError
from soma_agents.cluster.takeover import TAKEOVERS, EngineLostError, taken_over
from soma_agents.language.engine import Engine
from soma_agents.language.model import load_model
from soma_agents.language.requests import Finished, GenerationRequest, Piece
from soma_agents.language.sampling import Sampling
from tests.tiny_models import write_tiny_model

WARM = Sampling(temperature=1.0, max_tokens=24, logprobs=1)


@pytest.fixture
async def engine(tmp_path):
    write_tiny_model(tmp_path / "tiny.gguf")
    engine = Engine(load_model(str(tmp_path / "tiny.gguf")), slots=4, threads=1)
    engine.start()
    yield engine
    await engine.close()


class Deaths:
    """An engine that dies after so many pieces, once for each number."""

    def __init__(self, engine, *after, error=EngineLostError):
        self.engine = engine
        self.after = list(after)
        self.error = error
        self.requests = []

    async def __call__(self, request):
        self.requests.append(request)
        left = self.after.pop(0) if self.after else None
        async with aclosing(self.engine.generate(request)) as items:
            async for item in items:
                if left == 0:
                    raise self.error("gone")
                left = left - 1 if left is not None else None
                yield item


async def all_of(stream, sampling=WARM):
    request = GenerationRequest((1, 2, 3, 4, 5), sampling)
    items = [item async for item in taken_over(stream, request)]
    pieces = [item for item in items if isinstance(item, Piece)]
    (finished,) = [item for item in items if isinstance(item, Finished)]
    ids = [token for piece in pieces for token in piece.token_ids]
    logprobs = [each.token for piece in pieces for each in piece.logprobs]
    return ids, "".join(piece.text for piece in pieces), logprobs, finished.reason


async def test_a_reply_goes_on_where_it_was_whenever_its_engine_dies(engine):
    seeded = Sampling(temperature=1.0, max_tokens=24, logprobs=1, seed=5)
    whole = await all_of(engine.generate, seeded)

    for moment in range(8):
        assert await all_of(Deaths(engine, moment), seeded) == whole


async def test_without_a_seed_the_successor_is_given_the_first_ones(engine):
    stream = Deaths(engine, 3, 5)

    ids, _, logprobs, reason = await all_of(stream)

    assert len({request.sampling.seed for request in stream.requests}) == 1
    assert len(stream.requests) == 3
    assert len(ids) == 24
    assert logprobs == ids
    assert reason == "length"


async def test_one_that_dies_again_and_again_is_given_up(engine):
    with pytest.raises(UnavailableError, match="gone"):
        await all_of(Deaths(engine, *[2] * (TAKEOVERS + 1)))


async def test_a_successor_that_says_something_else_is_not_mixed_in(engine):
    lives = iter(range(9))

    async def forgets_the_seed(request):
        if next(lives) == 0:
            yield Piece("something else", (999_999,))
            raise EngineLostError("gone")
        async for item in engine.generate(request):
            yield item

    with pytest.raises(UnavailableError, match="something else"):
        await all_of(forgets_the_seed)


async def test_a_request_that_is_refused_is_not_tried_again(engine):
    stream = Deaths(engine, 0, error=InvalidError)

    with pytest.raises(InvalidError):
        await all_of(stream)

    assert len(stream.requests) == 1
