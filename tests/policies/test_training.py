from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.statistics import confidence_sequence, spend
from policies.training import (
    Due,
    ExampleRules,
    Examples,
    Group,
    Insufficient,
    NotDue,
    Sufficient,
    TrainingFacts,
    is_due,
    is_sufficient,
    split,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def groups(count, **rest):
    return [Group(f"g{i}", START + timedelta(hours=i), **rest) for i in range(count)]


# --- when ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "due", "because"),
    [
        (TrainingFacts(500), True, "500 new messages, 500 start a round"),
        (TrainingFacts(499), False, "499 new messages, 500 start a round"),
        (TrainingFacts(900, running="r7"), False, "round r7 is still running"),
        (TrainingFacts(0, requested="user"), True, "asked for by the user"),
        (TrainingFacts(0, running="r7", requested="user"), False, "round r7 is still running"),
        (TrainingFacts(1, requested="schedule"), True, "the weekly round, 1 new messages"),
        (TrainingFacts(0, requested="schedule"), False, "nothing new was said"),
        (TrainingFacts(500, requested="schedule"), True, "500 new messages"),
    ],
)
def test_a_round_is_due_at_the_threshold_weekly_or_on_request_but_only_one_at_a_time(
    facts, due, because
):
    decision = is_due(facts, min_new_messages=500)

    assert isinstance(decision, Due if due else NotDue)
    assert because in decision.because


# --- from what -----------------------------------------------------------------------------


def test_the_newest_conversations_and_some_by_hash_are_held_out():
    sides = split(groups(200), heldout_share=0.2)

    heldout = [int(name[1:]) for name, side in sides.items() if side == "heldout"]
    assert set(range(180, 200)) <= set(heldout)
    assert 5 <= len([i for i in heldout if i < 180]) <= 40


def test_what_is_held_out_by_hash_stays_so_as_material_grows():
    before = split(groups(200), heldout_share=0.2)
    after = split(groups(600), heldout_share=0.2)

    by_hash = {n for n, side in before.items() if side == "heldout" and int(n[1:]) < 180}
    assert {after[name] for name in by_hash} == {"heldout"}


def test_pinned_groups_go_where_they_must():
    sides = split(
        [
            *groups(20),
            Group("kept", START, pinned="heldout"),
            Group("fact", START, pinned="train"),
            Group("fact, asked otherwise", START, pinned="validation"),
        ],
        heldout_share=0.2,
    )

    assert sides["kept"] == "heldout"
    assert sides["fact"] == "train"
    assert sides["fact, asked otherwise"] == "validation"


def test_what_the_user_held_out_counts_towards_the_share():
    marked = [Group(f"h{i}", START, pinned="heldout") for i in range(25)]

    sides = split([*groups(100), *marked], heldout_share=0.2)

    assert {name for name, side in sides.items() if side == "heldout"} == {g.name for g in marked}


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, []), (1, ["train"]), (2, ["heldout", "train"]), (3, ["heldout", "train", "validation"])],
)
def test_few_groups_are_trained_on_first(count, expected):
    sides = split(groups(count), heldout_share=0.2)

    assert sorted(set(sides.values())) == expected


@given(
    names=st.lists(st.text(max_size=8), unique=True, max_size=60),
    share=st.floats(0.05, 0.5),
    pins=st.lists(st.sampled_from([None, "train", "validation", "heldout"]), min_size=60),
)
def test_every_group_is_on_one_side_and_always_the_same(names, share, pins):
    given_groups = [
        Group(name, START + timedelta(hours=i % 7), pin)
        for i, (name, pin) in enumerate(zip(names, pins, strict=False))
    ]

    sides = split(given_groups, heldout_share=share)

    assert set(sides) == set(names)
    assert split(given_groups[::-1], heldout_share=share) == sides
    assert all(sides[g.name] == g.pinned for g in given_groups if g.pinned)


# --- enough --------------------------------------------------------------------------------

RULES = ExampleRules(min_train=24)


def test_fewer_held_out_items_than_demanded_could_decide_nothing():
    best = [1.0] * (RULES.min_heldout - 1)

    first = confidence_sequence(best[:-1], low=-1, high=1, alpha=spend(0.05, 1))
    enough = confidence_sequence([*best, 1.0], low=-1, high=1, alpha=spend(0.05, 1))

    assert first.low <= 0 < enough.low


def test_enough_examples_are_sufficient():
    decision = is_sufficient(Examples(train=24, validation=1, heldout=12), RULES)

    assert decision == Sufficient("24 training, 1 validation and 12 held-out examples")


@pytest.mark.parametrize(
    ("examples", "because"),
    [
        (Examples(23, 1, 12), "23 training examples, at least 24 are needed"),
        (Examples(24, 0, 12), "0 validation examples, at least 1 are needed"),
        (Examples(24, 1, 11), "11 held-out examples, at least 12 are needed"),
    ],
)
def test_too_few_are_refused_with_the_way_out(examples, because):
    decision = is_sufficient(examples, RULES)

    assert isinstance(decision, Insufficient)
    assert decision.because.startswith(because)
    assert "import conversations" in decision.because
