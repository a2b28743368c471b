import uuid
from datetime import UTC, timedelta

from soma_agents.storage.identifiers import SystemClock, Uuid7


def test_the_clock_is_aware_and_in_utc():
    now = SystemClock().now()

    assert now.tzinfo is UTC
    assert SystemClock().now() - now < timedelta(seconds=5)


def test_ids_are_version_7_and_sort_by_time():
    ids = Uuid7()

    made = [ids.new() for _ in range(20_000)]

    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert {uuid.UUID(one).version for one in made} == {7}
    assert {uuid.UUID(one).variant for one in made} == {uuid.RFC_4122}


def test_an_id_tells_its_millisecond():
    before = int(SystemClock().now().timestamp() * 1000)

    made = uuid.UUID(Uuid7().new())

    assert before <= made.int >> 80 <= before + 5000


def test_ids_go_on_upwards_when_the_clock_goes_back():
    ids = Uuid7()
    first = ids.new()
    ids._millisecond += 3_600_000

    later = [ids.new() for _ in range(100)]

    assert [first, *later] == sorted([first, *later])


def test_a_millisecond_that_is_used_up_borrows_from_the_next():
    ids = Uuid7()
    ids.new()
    ids._millisecond += 3_600_000
    ids._random = (1 << 74) - 1
    last = uuid.UUID(int=(ids._millisecond << 80) | ((1 << 80) - 1))

    assert uuid.UUID(ids.new()).int >> 80 == (last.int >> 80) + 1
