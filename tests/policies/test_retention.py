import pytest

from policies.retention import Retention, segment_due

RULES = Retention(keep=100, segment=10)


@pytest.mark.parametrize(
    ("end", "archived", "bounds"),
    [(0, 0, None), (109, 0, None), (110, 0, (1, 10)), (500, 20, (21, 30)), (129, 20, None)],
)
def test_a_segment_moves_when_enough_stays_without_it(end, archived, bounds):
    due = segment_due(end=end, archived=archived, rules=RULES)

    assert (due and (due.first, due.last)) == bounds


def test_a_log_that_keeps_all_moves_nothing():
    assert segment_due(end=10**9, archived=0, rules=Retention(keep=0)) is None
