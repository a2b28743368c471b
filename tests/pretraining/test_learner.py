import pytest
import torch
from torch.nn import functional

from arbiters.errors import InvalidError
from soma_agents.pretraining import kernels
from soma_agents.pretraining import learner as learner_module
from soma_agents.pretraining.learner import Learner


def awake(learner):
    """All weights drawn: as it begins, each block is the identity."""
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    learner.refresh()
    return learner


OTHER = {
    "activation": "relu2",
    "gated": False,
    "head_norm": True,
    "window": 50,
    "global_every": 2,
}


EXPERTS = {"experts": 5, "experts_per_token": 2, "d_ff": 24}
FAR = {"window": 50, "global_every": 2, "rope_theta": 1e6, "local_rope_theta": 1e4}


@pytest.fixture(
    params=[{}, OTHER, EXPERTS, OTHER | EXPERTS, FAR],
    ids=["llama", "v1", "experts", "v1 with experts", "long context"],
)
def learner(make_recipe, make_model, request, monkeypatch):
    monkeypatch.setattr(learner_module, "BALANCE", 0.0)
    monkeypatch.setattr(kernels, "KEPT", 200)
    return awake(Learner(make_recipe(model=make_model(**request.param))))


TOKENS = torch.arange(2 * 301).view(2, 301) * 7 % 300


def test_it_computes_what_the_served_transformer_computes(learner):
    served = learner.transformer()

    ours = learner.nats(TOKENS)

    logits = served(TOKENS[:, :-1])
    theirs = functional.cross_entropy(logits.transpose(1, 2), TOKENS[:, 1:], reduction="none")
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_its_gradients_are_those_of_the_served_transformer(learner):
    served = learner.transformer().requires_grad_()

    learner.loss(TOKENS)[0].backward()
    learner.collect()

    logits = served(TOKENS[:, :-1])
    functional.cross_entropy(logits.transpose(1, 2), TOKENS[:, 1:], reduction="sum").backward()
    theirs = {name: p.grad for name, p in served.named_parameters()}
    torch.testing.assert_close(
        learner.embedding.grad, theirs["embedding.weight"], rtol=1e-3, atol=1e-3
    )
    with torch.no_grad():
        for weight in learner.parameters():
            weight.copy_(weight.grad)
    for name, gradient in learner.exported():
        if "norm" not in name:
            torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-3)


def test_going_through_blocks_twice_changes_no_gradient(learner, make_recipe):
    thrifty = awake(Learner(make_recipe(model=learner.config, recompute=True)))

    for one in (learner, thrifty):
        one.loss(TOKENS)[0].backward()
        one.collect()

    for ours, other in zip(learner.parameters(), thrifty.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad)


def test_in_bfloat16_it_is_nearly_the_same(learner, make_recipe):
    short = awake(Learner(make_recipe(model=learner.config, precision="bfloat16")))

    (_, rounded), (_, exact) = short.loss(TOKENS), learner.loss(TOKENS)

    assert rounded.item() == pytest.approx(exact.item(), rel=0.01)


def test_what_it_exports_it_can_begin_with(learner, make_recipe):
    other = Learner(make_recipe(model=learner.config, seed=2))

    other.take(dict(learner.exported()))

    for ours, theirs in zip(learner.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_it_begins_as_one_that_knows_nothing(make_recipe):
    fresh = Learner(make_recipe())
    fresh.refresh()

    nats = fresh.nats(TOKENS).mean()

    assert float(nats) == pytest.approx(torch.tensor(300.0).log().item(), rel=0.02)


def test_it_can_be_looked_at_without_memory_for_it(make_recipe, make_model):
    with torch.device("meta"):
        vast = Learner(make_recipe(model=make_model(d_model=8192, layers=4, context=131_072)))

    assert vast.size > 10_000_000
    assert vast.embedding.is_meta


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation": "gelu"}, "activation 'gelu' with gated = True cannot be learnt"),
        ({"post_norm": True}, "post_norm=True can be served, not learnt"),
        ({"tied_embeddings": False}, "the table is the head"),
    ],
)
def test_what_only_serving_knows_is_refused(changes, said, make_recipe, make_model):
    with pytest.raises(InvalidError, match=said):
        Learner(make_recipe(model=make_model(**changes)))


def test_an_uneven_load_costs_more_than_an_even_one(make_recipe, make_model):
    learner = awake(Learner(make_recipe(model=make_model(**EXPERTS))))
    costs = []

    for router in (torch.zeros(5, 32), torch.eye(5, 32) * 50):
        with torch.no_grad():
            for each in learner.routers:
                each.copy_(router)
        loss, nats = learner.loss(TOKENS)
        costs.append((loss - nats).item() / (2 * 300 * learner_module.BALANCE))

    assert costs[0] == pytest.approx(2, rel=0.01)  # one for each layer
    assert costs[1] > costs[0] + 0.1
