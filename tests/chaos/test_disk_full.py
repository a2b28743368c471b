"""No room at the n-th write: callers are told, nothing is lost, work goes on.

Every fourth n of the long lives; `python -m bench.diskfull` takes every n of all.
"""

import pytest

from bench.diskfull import LIVES, every_write

pytestmark = pytest.mark.slow


STRIDES = {"log": 4, "host": 4, "files": 1}


@pytest.mark.parametrize("life", LIVES)
def test_a_disk_that_is_full_at_any_write_loses_nothing_acknowledged(life):
    found = every_write(life, STRIDES[life])

    assert found["failures"] == []
    assert found["places"] > 50
