import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.privacy import (
    Context,
    Excluded,
    Losing,
    Material,
    PrivacyRules,
    Target,
    allowances,
    rating_of,
    repetitions,
    target_of,
    trust_of_source,
)

RULES = PrivacyRules()


@pytest.mark.parametrize(
    ("material", "expected"),
    [
        (
            Material("demonstration", "owner"),
            Target("demonstration", "a person wrote it as the better answer"),
        ),
        (
            Material("imported", "imported", asked_by="imported"),
            Target("imported", "a person imported it"),
        ),
        (Material("fact", "owner"), Target("fact", "a person stated it")),
        (Material("reply", "self", rating=1.0), Target("liked", "a person rated it 1")),
        (Material("reply", "self", rating=0.5), Target("liked", "a person rated it 0.5")),
        (Material("reply", "self", rating=-1.0), Losing("a person rated it -1")),
        (Material("reply", "self"), Context("nobody judged it")),
        (Material("reply", "self", rating=0.1), Context("rated 0.1, neither liked nor disliked")),
        (
            Material("demonstration", "owner", deleted=True),
            Excluded("its conversation was deleted"),
        ),
        (Material("fact", "owner", forgotten=True), Excluded("it was taken back")),
    ],
)
def test_each_text_has_its_use(material, expected):
    assert target_of(material, RULES) == expected


@pytest.mark.parametrize("trust", ["external", "self", "nonsense"])
@pytest.mark.parametrize("origin", ["demonstration", "imported", "fact"])
def test_untrusted_words_are_never_a_target(origin, trust):
    assert isinstance(target_of(Material(origin, trust), RULES), Context)


def test_a_reply_that_is_not_our_own_is_never_a_target():
    assert isinstance(target_of(Material("reply", "external", rating=1.0), RULES), Context)


@pytest.mark.parametrize("asked_by", ["external", "self"])
def test_an_answer_to_untrusted_words_is_never_a_target(asked_by):
    liked = Material("reply", "self", asked_by=asked_by, rating=1.0)

    assert isinstance(target_of(liked, RULES), Context)


@given(
    st.sampled_from(["reply", "demonstration", "imported", "fact"]),
    st.sampled_from(["owner", "imported", "self", "external"]),
    st.none() | st.floats(-1, 1),
)
def test_what_was_deleted_or_forgotten_is_in_no_dataset(origin, trust, rating):
    deleted = Material(origin, trust, rating=rating, deleted=True)
    forgotten = Material(origin, trust, rating=rating, forgotten=True)

    assert isinstance(target_of(deleted, RULES), Excluded)
    assert isinstance(target_of(forgotten, RULES), Excluded)


def test_only_the_newest_judgement_of_a_human_counts():
    assert rating_of([]) is None
    assert rating_of([("JUDGE", 1.0), ("CODE", 1.0), ("IMPLICIT", 1.0)]) is None
    assert rating_of([("HUMAN", 1.0), ("HUMAN", -1.0), ("JUDGE", 1.0)]) == -1.0
    assert trust_of_source("HUMAN") == "owner"
    assert trust_of_source("JUDGE") == "self"


def test_a_single_account_may_contribute_all_it_has():
    assert allowances({"mira": 10**9, "idle": 0}, RULES) == {"mira": 10**9, "idle": 0}
    assert allowances({}, RULES) == {}


def test_a_little_is_always_allowed():
    assert allowances({"mira": 30_000, "ben": 10}, RULES) == {"mira": 30_000, "ben": 10}


def test_of_two_accounts_none_is_more_than_three_quarters():
    strict = PrivacyRules(always=0)

    assert allowances({"mira": 1_000_000, "ben": 100_000}, strict) == {
        "mira": 300_000,
        "ben": 100_000,
    }


def test_among_very_many_accounts_none_is_more_than_a_hundredth():
    strict = PrivacyRules(always=0)
    contributed = {f"user{i}": 1_000 for i in range(1_000)} | {"flood": 10**9}

    allowed = allowances(contributed, strict)

    assert allowed["flood"] <= 0.01 * sum(allowed.values())
    assert allowed["flood"] > 0.0099 * sum(allowed.values())
    assert allowed["user7"] == 1_000


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 10**9), min_size=2, max_size=30))
def test_no_account_exceeds_its_share_of_what_is_kept(contributed):
    strict = PrivacyRules(always=0)
    share = max(strict.share, strict.fair / len(contributed))

    allowed = allowances(contributed, strict)

    assert all(allowed[name] <= amount for name, amount in contributed.items())
    assert max(allowed.values()) <= share * sum(allowed.values())
    # The cap is the largest possible: one byte more would be too much, or nobody was cut.
    cap = max(allowed.values()) + 1
    kept = sum(min(amount, cap) for amount in contributed.values())
    assert cap > share * kept or allowed == contributed


def test_a_fact_about_one_person_is_not_taught_to_a_model_that_answers_others():
    assert isinstance(target_of(Material("fact", "owner", shared=True), RULES), Excluded)
    shared = Material("demonstration", "owner", shared=True)
    assert isinstance(target_of(shared, RULES), Target)


# --- repetitions ---------------------------------------------------------------------------

LONG = " ".join(f"word{i}" for i in range(100))


def test_what_differs_only_in_case_spacing_and_marks_is_a_repetition():
    assert repetitions(["Is tea hot? Yes.", "is tea  hot yes", "Is ice hot? No."]) == {1}


def test_nearly_the_same_long_text_is_a_repetition_and_the_first_stays():
    assert repetitions([LONG, f"{LONG} indeed", LONG.replace("word50", "x")]) == {1, 2}
    assert repetitions([LONG, LONG.replace("word5", "x")]) == set()


def test_texts_without_words_are_told_apart():
    assert repetitions(["!", "?", "", "!", ""]) == {3, 4}


words = st.sampled_from(["a", "b", "c", "d", "e"])


@given(st.lists(st.lists(words, max_size=40).map(" ".join), max_size=12))
def test_the_fast_search_finds_what_comparing_everything_finds(texts):
    def shingles(text):
        words = text.split() or [""]
        return {tuple(words[i : i + 3]) for i in range(max(len(words) - 2, 1))}

    kept = []
    expected = set()
    for place, text in enumerate(texts):
        mine = shingles(text)
        if any(len(mine & shingles(k)) / len(mine | shingles(k)) >= 0.9 for k in kept):
            expected.add(place)
        else:
            kept.append(text)

    assert repetitions(texts) == expected
