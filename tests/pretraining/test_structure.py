import pytest
import torch

from arbiters.errors import InvalidError
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.run import Sources, pretrain
from soma_agents.pretraining.structure import ACTIVE, places, sentence_distances, traits_of
from soma_agents.pretraining.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary(prose):
    return Vocabulary.learn(prose, 330)


@pytest.fixture(scope="module")
def traits(vocabulary):
    return traits_of(vocabulary)


def ids(vocabulary, text):
    return torch.from_numpy(vocabulary.encode(text).astype("int64"))[None]


def test_every_token_has_its_features(vocabulary, traits):
    assert traits.features.shape == (330, 65)
    capital, small, end = (
        traits.features[token]
        for token in (*ids(vocabulary, "The the")[0][[0, -1]], vocabulary.end)
    )
    assert capital[2] == 1 / ACTIVE
    assert small[2] == 0
    assert torch.equal(capital[48:64], small[48:64])
    assert end.tolist() == [float(n == 8) / ACTIVE for n in range(65)]


def test_words_sentences_and_paragraphs_are_counted(vocabulary, traits):
    tokens = ids(vocabulary, "A fox. It sings.\n\nIt looks.")
    text = [vocabulary.texts()[t] for t in tokens[0]]

    found = places(tokens, traits)[0]

    stop = next(n for n, token in enumerate(text) if token.endswith("."))
    assert found[stop, 2] == 0
    assert found[stop + 1, 2] == 1
    assert found[-1, 2] == 2
    assert found[-1, 3] >= 1
    assert (found.diff(dim=0) >= 0).all()


def test_what_comes_later_changes_no_place(vocabulary, traits):
    tokens = ids(vocabulary, "A fox lives. It sings by the river.\n")

    whole, start = places(tokens, traits), places(tokens[:, :4], traits)

    assert torch.equal(whole[:, :4], start)


def test_distances_reach_the_end_of_the_sentence(vocabulary, traits):
    tokens = ids(vocabulary, "It sings.")
    width = tokens.shape[1]

    found = sentence_distances(tokens, traits)[0]

    assert found[-1] == 0
    assert found[0] == int(torch.tensor(float(width)).log2())


@pytest.mark.parametrize(
    "part",
    [
        {"features": True},
        {"hierarchy": True},
        {"objectives": ("structure", "hierarchy", "coherence")},
    ],
    ids=str,
)
def test_every_part_reaches_the_weights(part, traits, make_recipe, make_model, vocabulary):
    recipe = make_recipe(model=make_model(vocab_size=330), **part)
    learner = Learner(recipe, traits)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.normal_(0, 0.1)
    learner.refresh()
    tokens = ids(vocabulary, "The fox lives in the reeds. It looks for a vole. " * 8)[:, :120]

    learner.loss(tokens)[0].backward()
    learner.collect()

    assert all(parameter.grad.abs().sum() > 0 for parameter in learner.parameters())


def test_features_are_folded_into_the_exported_table(traits, make_recipe, make_model, vocabulary):
    learner = Learner(make_recipe(model=make_model(vocab_size=330), features=True), traits)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    learner.refresh()
    tokens = ids(vocabulary, "The fox lives in the reeds.")

    logits = learner.transformer()(tokens[:, :-1])

    theirs = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    torch.testing.assert_close(learner.nats(tokens), theirs, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_served_is_not_learnt_for_serving(tmp_path, make_recipe):
    with pytest.raises(InvalidError, match="comparisons only"):
        pretrain(Sources(tmp_path), make_recipe(hierarchy=True), tmp_path / "run")


def test_parts_without_a_vocabulary_are_refused(make_recipe):
    with pytest.raises(InvalidError, match="need the vocabulary's traits"):
        Learner(make_recipe(features=True))
