"""Two dozen kills; `python -m bench.kills` makes five hundred."""

import pytest

from bench.kills.storm import storm

pytestmark = pytest.mark.slow


def test_nothing_acknowledged_is_lost_and_nothing_is_done_twice_in_a_storm_of_kills():
    tally = storm(25, seed=2)

    assert (tally.findings.lost, tally.findings.duplicated, tally.findings.broken) == ([], [], [])
    assert tally.findings.acknowledged > 250
    assert tally.orphans == 0
    # One that had not come so far when it was killed was neither let in nor refused.
    assert tally.refused <= tally.stopped > 0
    assert tally.stale_accepted == 0
