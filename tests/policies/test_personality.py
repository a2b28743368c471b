import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.personality import (
    DEFAULTS,
    DIMENSIONS,
    PersonalityRules,
    around,
    describe,
    describe_shift,
    dimensions_of,
    distance,
    evolve,
)

RULES = PersonalityRules()
PLAYFUL = {"words": 200.0, "emoji_per_word": 0.2, "play_per_word": 0.1}
ANGRY = {"words": 200.0, "sentiment": -1.0, "negative": 0.6, "courtesy_per_word": 0.0}

unit = st.floats(0, 1)
measures = st.dictionaries(
    st.sampled_from(sorted({t.measure for d in DIMENSIONS for t in d.terms})),
    st.floats(-1000, 1000),
)
personalities = st.dictionaries(st.sampled_from(sorted(DEFAULTS)), unit)


def test_there_are_fifteen_dimensions_each_with_a_meaning_and_measures():
    assert len(DEFAULTS) == 15
    for dimension in DIMENSIONS:
        assert dimension.meaning.endswith(".")
        assert dimension.terms
        assert 0 < dimension.default < 1


@given(measures)
def test_whatever_is_measured_every_dimension_stays_within_bounds(given):
    shown = dimensions_of(given)

    assert set(shown) == set(DEFAULTS)
    assert all(0 <= value <= 1 for value in shown.values())


def test_a_text_without_words_shows_the_defaults():
    assert dimensions_of({}) == DEFAULTS


def test_a_longer_text_shows_more_of_its_personality():
    short = dimensions_of(PLAYFUL | {"words": 5.0})
    long = dimensions_of(PLAYFUL)

    assert DEFAULTS["playfulness"] < short["playfulness"] < long["playfulness"]


def test_a_dimension_can_fall_with_its_measure():
    hedging = dimensions_of({"words": 200.0, "hedges_per_word": 0.06})
    certain = dimensions_of({"words": 200.0, "hedges_per_word": 0.0})

    assert hedging["directness"] < certain["directness"]


@given(personalities, personalities)
def test_distance_is_a_distance(a, b):
    assert distance(a, a) == 0
    assert distance(a, b) == pytest.approx(distance(b, a))
    assert 0 <= distance(a, b) <= 1


def test_opposite_personalities_are_one_apart():
    zeros, ones = dict.fromkeys(DEFAULTS, 0.0), dict.fromkeys(DEFAULTS, 1.0)

    assert distance(zeros, ones) == 1


def test_the_personality_moves_towards_how_a_person_writes():
    shift = evolve(DEFAULTS, measures_of_user=PLAYFUL, rules=RULES)

    assert shift.dimensions["playfulness"] > DEFAULTS["playfulness"]
    assert shift.dimensions["curiosity"] == DEFAULTS["curiosity"]
    assert shift.because.startswith("how you write: ")
    assert "playfulness 0.40 → 0.4" in shift.because


def test_a_bad_mood_does_not_make_it_colder_than_by_default():
    shift = evolve(DEFAULTS, measures_of_user=ANGRY, rules=RULES)

    assert shift.dimensions["warmth"] == DEFAULTS["warmth"]
    assert shift.dimensions["optimism"] == DEFAULTS["optimism"]


def test_it_moves_away_from_a_reply_that_was_disliked_and_towards_one_that_was_liked():
    disliked = evolve({}, measures_of_reply=PLAYFUL, feedback=-1, rules=RULES)
    liked = evolve({}, measures_of_reply=PLAYFUL, feedback=1, rules=RULES)

    assert disliked.dimensions["humour"] < DEFAULTS["humour"] < liked.dimensions["humour"]
    assert disliked.because.startswith("a reply you did not like: ")
    assert liked.because.startswith("a reply you liked: ")


def test_a_reply_that_nobody_judged_moves_nothing():
    shift = evolve({}, measures_of_reply=PLAYFUL, rules=RULES)

    assert shift.dimensions == DEFAULTS
    assert shift.because == "nothing new: no dimension moved"


@given(personalities, measures, measures, st.floats(-1, 1))
def test_every_step_is_small_and_stays_between_floor_and_ceiling(now, user, reply, feedback):
    shift = evolve(
        now, measures_of_user=user, measures_of_reply=reply, feedback=feedback, rules=RULES
    )

    for name, value in shift.dimensions.items():
        before = min(max(now.get(name, DEFAULTS[name]), RULES.floor), RULES.ceiling)
        assert RULES.floor <= value <= RULES.ceiling
        assert abs(value - before) <= RULES.max_step + 1e-9


def test_the_same_writing_for_long_ends_where_the_writing_is():
    now = dict(DEFAULTS)
    for _ in range(300):
        now = evolve(now, measures_of_user=PLAYFUL, rules=RULES).dimensions

    assert now["humour"] == pytest.approx(dimensions_of(PLAYFUL)["humour"], abs=0.01)


def test_the_default_personality_is_described_as_balanced():
    assert describe(DEFAULTS) == describe({}) == "Be natural and balanced."


def test_marked_traits_are_described_the_most_marked_first():
    assert describe({"warmth": 0.9}) == "Be very warm."
    assert describe({"warmth": 0.7, "verbosity": 0.1}) == "Be very brief and warm."
    assert describe(dict.fromkeys(DEFAULTS, 1.0)).count("very") == 4


def test_a_shift_is_told_by_what_moved_most():
    told = describe_shift(DEFAULTS, DEFAULTS | {"humour": 0.6, "warmth": 0.59}, "a test")

    assert told == "a test: humour 0.40 → 0.60, warmth 0.60 → 0.59"


def test_a_personality_with_set_points_moves_around_them():
    points = {"warmth": 0.9, "humour": 0.1}

    still, moved = around(points, DEFAULTS), around(points, DEFAULTS | {"warmth": 0.8, "humour": 0})

    assert still == pytest.approx(DEFAULTS | points)
    assert moved["warmth"] == 1  # 0.2 above its default, and no further than 1
    assert moved["humour"] == 0
    assert around({}, {"warmth": 0.2}) == pytest.approx(DEFAULTS | {"warmth": 0.2})
