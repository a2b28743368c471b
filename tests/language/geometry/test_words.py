import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbiters.errors import InvalidError
from soma_agents.language.geometry.words import BLANK, words_of


def found(*texts):
    words = words_of(texts)
    pieces = [piece.decode() for piece in words.tokens.pieces.tolist()]
    listed = [[] for _ in texts]
    for word, text in zip(words.tokens.ids.tolist(), words.text.tolist(), strict=True):
        listed[text].append(pieces[word])
    return listed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat, THE Cats!", ["the", "cat", "the", "cats"]),
        ("don't 'quote' it\u2019s rock'n'roll", ["don't", "quote", "it's", "rock'n'roll"]),
        ("Ünïted Straße ﬁne \uff21\uff22", ["ünïted", "strasse", "fine", "ab"]),
        ("cafe\u0301 naïve", ["café", "naïve"]),
        ("我喜欢 cats カ", ["我", "喜", "欢", "cats", "カ"]),
        ("snake_case 3.14", ["snake", "case", "3", "14"]),
        ("Москва, شمس", ["москва", "شمس"]),
    ],
)
def test_a_text_is_cut_into_folded_words(text, words):
    assert found(text) == [words]


def test_a_text_without_words_has_one():
    assert found("...", "", " \n", "!? ?!", "'") == [["..."], [BLANK], [BLANK], ["!?", "?!"], ["'"]]


def test_no_text_has_no_words():
    assert found() == []


@given(st.lists(st.text(max_size=12), max_size=4))
@settings(max_examples=25, deadline=None)
def test_texts_cut_together_have_the_words_of_each(texts):
    assert found(*texts) == [found(text)[0] for text in texts]


def test_half_a_character_is_refused():
    with pytest.raises(InvalidError, match="lone surrogate"):
        words_of(["a\ud800b"])


def test_words_are_counted_text_by_text():
    bag = words_of(["a b a", "b"]).bag()

    assert list(zip(bag.text, bag.word, bag.times, strict=True)) == [
        (0, 0, 2),
        (0, 1, 1),
        (1, 1, 1),
    ]
