import pytest
import torch
from torch.nn.functional import cross_entropy

from arbiters.errors import InvalidError
from soma_agents.language.cache import BatchCache, PromptCache
from soma_agents.language.decoder import Decoder
from soma_agents.language.transformer import Transformer


def test_a_token_is_not_influenced_by_those_that_follow(tiny):
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 9]])

    logits = tiny.transformer(tokens)

    assert torch.equal(logits[0, :2], logits[1, :2])
    assert not torch.allclose(logits[0, 2], logits[1, 2])


@pytest.mark.parametrize("chunk", [1, 3, 7, 20])
def test_reading_in_chunks_with_a_cache_gives_the_logits_of_reading_at_once(tiny, chunk):
    tokens = torch.randint(0, 258, (1, 20), generator=torch.Generator().manual_seed(0))
    cache = PromptCache(tiny.config, 20, torch.float32)

    chunked = [tiny.transformer(part, cache=cache) for part in tokens.split(chunk, dim=1)]

    assert torch.allclose(torch.cat(chunked, dim=1), tiny.transformer(tokens), atol=1e-4)


def test_decoding_step_by_step_gives_the_logits_of_reading_at_once(tiny):
    sequences = [torch.randint(0, 258, (1, n)) for n in (3, 90, 17)]
    cache = BatchCache(tiny.config, torch.float32)
    for tokens in sequences:
        prompt = PromptCache(tiny.config, tokens.shape[1], torch.float32)
        tiny.transformer.hidden(tokens, cache=prompt)
        cache.join(prompt)
    decoder = Decoder(tiny)
    new = torch.randint(0, 258, (3, 50))

    for tokens in new.T.tolist():
        logits = decoder.step([[token] for token in tokens], cache, None)
        for row in range(3):
            cache.keep(row, 1)

    for row, tokens in enumerate(sequences):
        expected = tiny.transformer(torch.cat((tokens, new[row : row + 1]), dim=1))[0, -1]
        assert torch.allclose(logits[row], expected, atol=1e-4)


def test_a_row_that_moves_into_a_gap_goes_on_as_before(tiny):
    prompt = PromptCache(tiny.config, 4, torch.float32)
    tiny.transformer.hidden(torch.tensor([[9, 8, 7, 6]]), cache=prompt)
    other = PromptCache(tiny.config, 2, torch.float32)
    tiny.transformer.hidden(torch.tensor([[1, 2]]), cache=other)
    cache = BatchCache(tiny.config, torch.float32)
    cache.join(other)
    cache.join(prompt)

    moved = cache.leave(0)

    logits = Decoder(tiny).step([[5]], cache, None)
    assert moved == 1
    expected = tiny.transformer(torch.tensor([[9, 8, 7, 6, 5]]))[0, -1]
    assert torch.allclose(logits[0], expected, atol=1e-4)


def test_a_transformer_learns_one_batch_by_heart(make_config):
    transformer = Transformer.random(make_config(), seed=2)
    optimiser = torch.optim.AdamW(transformer.parameters(), lr=3e-3)
    tokens = torch.randint(0, 258, (4, 16), generator=torch.Generator().manual_seed(0))

    for _ in range(60):
        logits = transformer(tokens[:, :-1])
        loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    assert loss.item() < 0.1


def test_the_same_seed_gives_the_same_weights(make_config):
    first, second = (Transformer.random(make_config(), seed=3) for _ in range(2))

    assert torch.equal(first.head.weight, second.head.weight)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"heads": 3}, "heads"), ({"layers": 0}, "layers"), ({"head_dim": 5}, "5")],
)
def test_impossible_sizes_are_refused_by_name(make_config, changes, named):
    with pytest.raises(InvalidError, match=named):
        make_config(**changes)
