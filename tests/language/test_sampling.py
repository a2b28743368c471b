from collections import Counter

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arbiters.errors import InvalidError
from soma_agents.language.sampling import Sampler, Sampling, token_logprob

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def drawn(sampling: Sampling, logits: torch.Tensor = LOGITS, times: int = 4000) -> dict[int, float]:
    sampler = Sampler(sampling, ())
    counts = Counter(sampler.choose(logits) for _ in range(times))
    return {token: count / times for token, count in counts.items()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_model_says(temperature):
    shares = drawn(Sampling(temperature=temperature, seed=1))

    for token, expected in enumerate(torch.softmax(LOGITS / temperature, -1).tolist()):
        assert shares.get(token, 0) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.3}, {0, 1}),
        ({"min_p": 0.2}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.7}, {0, 1}),
    ],
)
def test_unlikely_tokens_are_cut_off(settings, allowed):
    assert set(drawn(Sampling(seed=1, **settings))) == allowed


def test_a_nucleus_beyond_the_short_list_is_sorted_in_full():
    flat = torch.zeros(5000)

    shares = drawn(Sampling(seed=1, top_p=0.5), flat, times=3000)

    assert 1500 < len(shares) <= 2500


def test_a_nucleus_that_ends_in_the_short_list_is_a_share_of_all_tokens():
    lead_and_tail = torch.full((5000,), 0.1 / 4999)
    lead_and_tail[0] = 0.9

    shares = drawn(Sampling(seed=1, top_p=0.92), lead_and_tail.log())

    assert shares[0] == pytest.approx(0.9 / 0.92, abs=0.01)
    assert 1 < len(shares) <= 1001


def test_likely_enough_tokens_beyond_the_short_list_are_drawn():
    half = torch.full((10_000,), 0.5 / 9999)
    half[0] = 0.5

    shares = drawn(Sampling(seed=1, min_p=1e-5), half.log(), times=1000)

    assert shares[0] == pytest.approx(0.5, abs=0.05)
    assert len(shares) > 400


def test_the_same_seed_draws_the_same_tokens():
    first, second = (Sampler(Sampling(seed=7), ()) for _ in range(2))

    assert [first.choose(LOGITS) for _ in range(50)] == [second.choose(LOGITS) for _ in range(50)]


def test_without_a_seed_draws_differ():
    first, second = (Sampler(Sampling(), ()) for _ in range(2))

    assert [first.choose(LOGITS) for _ in range(99)] != [second.choose(LOGITS) for _ in range(99)]


def test_repetition_is_penalised_in_prompt_and_reply():
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=10.0), prompt=(0,))

    chosen = [sampler.choose(LOGITS) for _ in range(3)]

    assert chosen == [1, 2, 0]


def test_logprobs_are_the_models_own():
    found = token_logprob(LOGITS, 2, 2)

    expected = torch.log_softmax(LOGITS, -1)
    assert found.logprob == pytest.approx(expected[2].item())
    assert [token for token, _ in found.top] == [0, 1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("max_tokens", 0),
        ("logprobs", 21),
        ("stop", ("",)),
    ],
)
def test_senseless_settings_are_refused_by_name(field, value):
    with pytest.raises(InvalidError, match=field):
        Sampling(**{field: value})


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-50, 50), min_size=2, max_size=40),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    temperature=st.floats(0, 5),
)
@example(logits=[0.0, 1.0], top_k=0, top_p=0.5, min_p=0.0, temperature=5e-324)
def test_any_settings_choose_some_token(logits, top_k, top_p, min_p, temperature):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=1)

    assert 0 <= Sampler(sampling, ()).choose(torch.tensor(logits)) < len(logits)


@pytest.mark.parametrize("settings", [{"top_p": 0.9}, {"top_p": 0.4}, {}], ids=str)
def test_a_draw_is_what_sorting_every_token_gives(settings):
    logits = torch.randn(200, 3000, generator=torch.Generator().manual_seed(2)) * 4
    sampler, dice = Sampler(Sampling(seed=9, **settings), ()), torch.Generator().manual_seed(9)

    for row in logits:
        order = row.argsort(descending=True, stable=True) if settings else torch.arange(3000)
        cumulative = torch.softmax(row.double(), -1)[order].cumsum(-1)
        if settings:
            cumulative = cumulative[: int((cumulative < settings["top_p"]).sum()) + 1]
        point = torch.rand((), generator=dice, dtype=torch.double) * cumulative[-1]
        assert sampler.choose(row) == order[int((cumulative <= point).sum())]
