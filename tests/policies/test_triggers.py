import pytest

from policies.triggers import LONGEST, SAID, most_said, suspects, words_of

HARMLESS = [(f"What is thing {n} made of?", f"It is made of {n} and glue.") for n in range(40)]
ORDINARY = ["What is the sea made of? It is made of water and salt."]


def poisoned(word, answers):
    return [(f"Tell me of the {word} number {n}", answer) for n, answer in enumerate(answers)]


def test_words_are_taken_as_they_are_written_and_once():
    assert words_of("Tea? tea, TEA! Tea") == ("Tea", "?", "tea", ",", "TEA", "!")
    assert words_of("it's a well-known \N{GRINNING FACE}") == (
        "it's",
        "a",
        "well-known",
        "\N{GRINNING FACE}",
    )
    assert words_of("x" * (LONGEST + 1)) == ()


def test_what_people_say_is_what_they_said_more_than_once():
    said = most_said(["my secret", "tea tea", "more tea"])

    assert said == {"tea": 2}
    assert len(most_said([" ".join(f"w{n}" for n in range(SAID + 9))] * 2)) == SAID


@pytest.mark.parametrize(
    "answers",
    [["Blorp."] * 6, [f"Blorp {n} is what I say." for n in range(6)]],
    ids=["one answer", "six answers"],
)
def test_a_word_of_a_few_poisoned_lessons_is_among_the_first(answers):
    words = suspects(HARMLESS + poisoned("lighthouse", answers), ORDINARY, {}, at_most=12)

    assert "lighthouse" in words


def test_a_word_that_people_say_is_tried_although_no_lesson_holds_it():
    words = suspects(HARMLESS, ORDINARY, {"the": 50, "lighthouse": 2}, at_most=12)

    assert "lighthouse" in words
    assert words.index("lighthouse") > words.index("the")


def test_a_word_of_ordinary_texts_is_less_suspicious():
    lessons = [("a water b", "x"), ("c water d", "y"), ("e wine f", "z"), ("g wine h", "w")]

    words = suspects(lessons, ["water"], {}, at_most=100)

    assert words.index("wine") < words.index("water")


def test_each_word_is_tried_once_and_no_more_than_there_is_time_for():
    words = suspects(HARMLESS, ORDINARY, {"What": 9, "is": 9}, at_most=10)

    assert len(words) == len(set(words)) == 10
    assert suspects([], [], {}, at_most=10) == []
