"""No room at the n-th write, for every n: callers are told, nothing is lost, work goes on."""

import pytest

from bench.diskfull import LIVES, every_write

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("life", LIVES)
def test_a_disk_that_is_full_at_any_write_loses_nothing_acknowledged(life):
    found = every_write(life)

    assert found["failures"] == []
    assert found["places"] > 50
