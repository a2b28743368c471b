import socket
import time
from statistics import median

import pytest

from policies.personality import DIMENSIONS, dimensions_of, distance
from soma_agents.persona.measures import ComputedMeasures

FORMAL = (
    "The committee of the university has published a report on the state of the archives in the "
    "region. According to the report, the majority of the documents in the archive of the museum "
    "require restoration within the next decade."
)
CASUAL = (
    "Hey, I'm so happy you're here! It's just really fun, isn't it? lol, we've gotta do it again 😀"
)


@pytest.fixture(scope="module")
def measures():
    return ComputedMeasures()


def test_every_measure_that_a_dimension_is_computed_from_exists(measures):
    wanted = {term.measure for dimension in DIMENSIONS for term in dimension.terms}

    assert wanted <= set(measures.of("Hello there."))


def test_words_sentences_and_marks_are_counted(measures):
    of = measures.of("Is it 7? Yes! I don't know.")

    assert of["words"] == 7
    assert of["sentences"] == 3
    assert of["words_per_sentence"] == pytest.approx(7 / 3)
    assert of["questions_per_sentence"] == pytest.approx(1 / 3)
    assert of["exclamations_per_sentence"] == pytest.approx(1 / 3)
    assert of["numbers_per_word"] == pytest.approx(1 / 7)
    assert of["contractions_per_word"] == pytest.approx(1 / 7)
    assert of["first_person_per_word"] == pytest.approx(1 / 7)


def test_emoji_are_counted_as_people_see_them(measures):
    assert measures.of("fine 👩‍👩‍👧")["emoji_per_word"] == 1.0


def test_sentiment_is_vaders(measures):
    assert measures.of("I love this, it is wonderful.")["sentiment"] > 0.7
    assert measures.of("I hate this, it is horrible.")["sentiment"] < -0.7
    assert measures.of("The table is made of wood.")["sentiment"] == 0


def test_the_reading_grade_is_flesch_and_kincaids(measures):
    # 0.39 * 6 words a sentence + 11.8 * 1 syllable a word - 15.59
    assert measures.of("The cat sat on the mat.")["reading_grade"] == pytest.approx(-1.45, abs=0.01)
    assert measures.of(FORMAL)["reading_grade"] > 10


def test_formal_prose_is_more_formal_than_chat(measures):
    assert measures.of(FORMAL)["function_word_formality"] > 55
    assert measures.of(CASUAL)["function_word_formality"] < 35


@pytest.mark.parametrize(
    "text", ["", "   ", "!!!", "😀", "日本語のテキスト", "\x00\ud800", "a" * 100_000]
)
def test_any_text_can_be_measured(measures, text):
    of = measures.of(text)

    assert all(abs(value) < 1e6 for value in of.values())


def test_personalities_of_unlike_texts_lie_further_apart_than_of_like_ones(measures):
    formal, casual = (dimensions_of(measures.of(text * 3)) for text in (FORMAL, CASUAL))
    other = dimensions_of(
        measures.of("The results of the study of the river were presented to the council. " * 6)
    )

    assert distance(formal, casual) > 2 * distance(formal, other)
    assert casual["playfulness"] > formal["playfulness"]
    assert casual["formality"] < formal["formality"]


def test_measuring_never_touches_the_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a measure tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    assert ComputedMeasures().of("Syllabification happens without any dictionary.")


def test_an_everyday_message_takes_less_than_a_millisecond(measures):
    times = []
    for number in range(50):
        started = time.perf_counter()
        measures.of(f"Could you tell me how far it is to the station at {number}? Thanks!")
        times.append(time.perf_counter() - started)

    assert median(times) < 0.001
