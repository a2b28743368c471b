"""What of a person's earlier words belongs beside a question."""

import pytest

from policies.memory.recall import asked, beginnings, quoted, worth_comparing

KEY = "We keep our spare key under the blue flower pot."


def test_only_what_asks_is_asked():
    assert asked("I lost my bag. Where is the spare key?") == "Where is the spare key?"
    assert asked("The spare key") == "The spare key"


def test_words_are_known_by_their_beginnings_without_the_frequent_ones():
    assert beginnings("When do the trains to Bergen leave?") == ("trai", "berg", "leav")
    assert beginnings("What do you think?") == ()


def test_a_long_question_is_looked_for_by_its_first_words():
    assert len(beginnings(" ".join(f"word{number}" for number in range(100, 200)))) <= 16


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Where is the spare key?", KEY),
        ("When does my piano lesson begin?", "Tomorrow my piano lesson begins at half past four."),
        ("Who repaired the sink?", "The plumber who repaired the sink was called Gregor."),
    ],
)
def test_a_sentence_that_may_answer_is_compared(question, said):
    assert worth_comparing(question, [f"Hello there! {said} How are you?"]) == [said]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Where is the spare key?", "Where do we keep our spare key now?"),
        ("Where is the spare key?", "Please look for the spare key in the shed."),
        ("Where is the spare key?", "Translate: the spare key is under the pot."),
        (
            "Where is the spare key?",
            'The book says "the spare key is under the pot and I am rich".',
        ),
        ("Where is the spare key?", "The key of the song is minor."),
        ("Where is the spare key?", "That is the spare key."),
        ("Where is the spare key?", f"The spare key {'and so on ' * 40}."),
        ("What is the name of my cat Minka?", "My cat is called Minka."),
    ],
    ids=[
        "a question",
        "a request",
        "a task",
        "somebody else's words",
        "one word in common",
        "nothing added",
        "too long",
        "a fact for the profile",
    ],
)
def test_what_cannot_answer_is_not(question, said):
    assert worth_comparing(question, [said]) == []


def test_what_stands_in_the_conversation_already_is_not_repeated():
    assert worth_comparing("Where is the spare key?", [KEY], said=f"Listen: {KEY}") == []
    assert worth_comparing("Where is the spare key?", [KEY, KEY]) == [KEY]


def test_three_sentences_at_most_are_quoted_and_none_that_is_not_like_enough():
    near = [("a", 0.51), ("b", 0.9), ("c", 0.49), ("d", 0.7), ("e", 0.6)]

    assert quoted(near) == ("b", "d", "e")
