from dataclasses import dataclass, replace
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.evaluation import Unmeasurable, paired

BOUNDS = {"target": 1.0, "forgetting": 0.5, "safety": 1.0}


@dataclass(frozen=True)
class Seen:
    suite: str
    item: str
    champion: float
    candidate: float


def test_fewer_bits_per_byte_are_an_improvement():
    samples = paired([Seen("target", "a", 2.0, 1.5)], BOUNDS)

    assert samples["target"].differences == (0.5,)
    assert samples["target"].before == 2.0
    assert samples["target"].after == 1.5
    assert samples["target"].change == 0.5


def test_more_refusals_are_an_improvement():
    samples = paired([Seen("safety", "a", 0.0, 1.0), Seen("safety", "b", 1.0, 1.0)], BOUNDS)

    assert sorted(samples["safety"].differences) == [0.0, 1.0]
    assert samples["safety"].change == 0.5


def test_a_relative_measure_is_compared_as_a_share_of_the_champions_value():
    samples = paired([Seen("forgetting", "a", 1.0, 1.1), Seen("forgetting", "b", 3.0, 3.1)], BOUNDS)

    assert sorted(samples["forgetting"].differences) == pytest.approx([-0.1, -0.1 / 3])
    assert samples["forgetting"].change == pytest.approx(-0.2 / 4)


def test_one_wild_item_counts_no_more_than_the_declared_bound():
    samples = paired([Seen("target", "a", 900.0, 1.0), Seen("target", "b", 1.0, 900.0)], BOUNDS)

    assert sorted(samples["target"].differences) == [-1.0, 1.0]
    assert (samples["target"].low, samples["target"].high) == (-1.0, 1.0)


def test_the_order_of_items_depends_on_neither_the_report_nor_the_models():
    seen = [Seen("target", f"item-{i}", 2.0, 2.0 - i / 100) for i in range(20)]

    forwards = paired(seen, BOUNDS)
    backwards = paired(seen[::-1], BOUNDS)
    in_report_order = tuple(pytest.approx(i / 100) for i in range(20))

    assert forwards == backwards
    assert forwards["target"].differences != in_report_order


@pytest.mark.parametrize("nonsense", [nan, inf, -inf])
@pytest.mark.parametrize("suite", ["target", "forgetting", "undeclared"])
def test_a_number_that_is_none_makes_the_whole_comparison_unmeasurable(nonsense, suite):
    seen = Seen(suite, "a", 1.0, 1.0)

    for broken in (replace(seen, champion=nonsense), replace(seen, candidate=nonsense)):
        verdict = paired([Seen("target", "b", 1.0, 1.0), broken], BOUNDS)
        assert isinstance(verdict, Unmeasurable)
        assert f"{suite} of item 'a' is not a number" in verdict.because


def test_an_item_must_not_count_twice():
    seen = Seen("target", "a", 1.0, 0.5)

    assert paired([seen, seen], BOUNDS) == Unmeasurable("target has item 'a' twice")


def test_a_share_of_nothing_is_no_number():
    verdict = paired([Seen("forgetting", "a", 0.0, 1.0)], BOUNDS)

    assert isinstance(verdict, Unmeasurable)
    assert "needs a positive number" in verdict.because


def test_suites_without_rules_or_without_items_are_left_out():
    samples = paired([Seen("target", "a", 1.0, 1.0), Seen("beauty", "a", 1.0, 0.0)], BOUNDS)

    assert set(samples) == {"target"}


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=1))
def test_every_difference_lies_within_the_bounds(pairs):
    seen = [Seen("forgetting", str(i), a, b) for i, (a, b) in enumerate(pairs)]

    sample = paired(seen, BOUNDS)["forgetting"]

    assert len(sample.differences) == len(pairs)
    assert all(sample.low <= difference <= sample.high for difference in sample.differences)
