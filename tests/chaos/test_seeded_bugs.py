"""The seeded bugs can still be planted; `python -m bench.bugs` sees each of them caught."""

import pytest

from bench.bugs import BUGS, ROOT, caught, plant


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_can_be_planted_where_it_was(name, tmp_path):
    for file, _, _ in BUGS[name].edits:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text((ROOT / file).read_text())

    plant(BUGS[name], tmp_path)

    for file, _, _ in BUGS[name].edits:
        planted = (tmp_path / file).read_text()
        assert planted != (ROOT / file).read_text()
        compile(planted, file, "exec")
    for test in BUGS[name].tests:
        assert (ROOT / test.partition("::")[0]).exists()


@pytest.mark.slow
def test_a_planted_bug_is_caught_by_name():
    assert caught(BUGS["pointer moved without a look"], seed=1).endswith(
        "test_of_two_swaps_from_the_same_champion_one_loses[sqlite]"
    )
