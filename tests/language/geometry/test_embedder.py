import numpy as np
import pytest

from arbiters.errors import InvalidError
from soma_agents.language.geometry import skipgram
from soma_agents.language.geometry.embedder import METHODS
from soma_agents.language.geometry.skipgram import BREAK, Stream, learn
from soma_agents.language.geometry.train import Plan, train

STRANGE = ["qwxz", "qwxz vbnm", "!!!", "", "我喜欢猫", "The dog", "wolf\n\nthe"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_every_text_a_vector_of_length_one(embedders, method):
    made = embedders[method].embed(STRANGE)

    assert made.shape == (len(STRANGE), embedders[method].dim)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("method", ["semantic", "hybrid"])
def test_words_that_stand_together_are_near(embedders, method):
    words = ["dog", "cow", "goat", "planet", "galaxy", "star"]

    made = embedders[method].embed(words)

    cosines = made @ made.T
    own = [*cosines[0, 1:3], *cosines[3, 4:]]
    foreign = cosines[:3, 3:]
    assert min(own) > foreign.max() + 0.1


def test_texts_without_a_common_word_are_near_when_their_words_are(embedders):
    made = embedders["semantic"].embed(["the dogs: dog, sheep", "cow and goat", "moon and star"])

    assert made[0] @ made[1] > made[0] @ made[2] + 0.3


def test_an_unknown_word_is_guessed_from_its_letters(embedders):
    made = embedders["semantic"].embed(["planetary", "planet", "horse"])

    assert made[0] @ made[1] > made[0] @ made[2] + 0.3


def test_the_nearest_lines_come_first(embedders):
    lines = ["the galaxy", "a goat", "grass and hay"]

    hits = embedders["hybrid"].near("sheep and goat", lines, 2)

    assert [number for number, _ in hits] == [1, 2]
    assert hits[0][1] > hits[1][1]


def test_the_same_corpus_and_seed_give_the_same_vectors(documents, embedders):
    again = train(documents, Plan("semantic", dim=32))

    np.testing.assert_array_equal(again.semantic.table, embedders["semantic"].semantic.table)
    assert again.corpus == embedders["semantic"].corpus


def test_words_of_two_texts_are_no_neighbours():
    a, b, x, c, d, y = range(6)
    texts = [[a, x], [c, y], [x, b], [y, d]] * 600
    ids = np.array([i for text in texts for i in [BREAK, *text]], np.int32)

    made = learn(Stream(ids, np.bincount(ids[ids != BREAK])), 8, seed=1, report=lambda _: None)

    made /= np.linalg.norm(made, axis=1, keepdims=True)
    assert min(made[a] @ made[b], made[c] @ made[d]) > made[b] @ made[c] + 0.3


def test_a_step_touches_only_the_rows_of_its_words():
    size = 200_000
    tables = skipgram._Tables(size, 8)
    before = tables._centres.clone(), tables._contexts.clone()
    words = skipgram.torch.arange(2 * skipgram.BLOCK).view(2, -1)

    # The first step moves contexts, which begin at zero, the second centres.
    for _ in range(2):
        tables.step(words, skipgram.torch.zeros_like(words), words + 1000, 0.1)

    moved = [
        (now != then).any(1).nonzero().flatten().tolist()
        for then, now in zip(before, (tables._centres, tables._contexts), strict=True)
    ]
    own = list(range(2 * skipgram.BLOCK))
    assert moved == [own, own + [1000 + n for n in own]]


@pytest.mark.parametrize(
    ("texts", "plan", "message"),
    [
        ([], Plan(), "corpus is empty"),
        (["", " \n"], Plan(), "corpus is empty"),
        (["just a few words"], Plan(), "0 of 4 words"),
        (["a"], Plan("glove"), "no method 'glove'; known are feature, hash, semantic, hybrid"),
        (["a"], Plan("feature", dim=64), "80 columns"),
        (["a"], Plan(dim=1), "--dim 1"),
        (["a"], Plan(min_count=0), "--min-count 0"),
        (["a \ud800"], Plan(), "lone surrogate"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(texts, plan, message):
    with pytest.raises(InvalidError, match=message):
        train(texts, plan)


def test_of_too_large_a_vocabulary_the_most_frequent_words_stay(documents):
    small = train(documents, Plan("hash", vocabulary=5))

    assert len(small.lexicon) == 5
    assert small.lexicon.pieces.tolist()[0] == b"the"
