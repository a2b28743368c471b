import shutil

import pytest

from arbiters.errors import CorruptError
from soma_agents.evaluation import suites


def test_the_frozen_suites_are_as_large_as_declared_and_name_each_item_once():
    for items, least in ((suites.general(), 80), (suites.safety(), 24), (suites.persona(), 8)):
        assert len(items) >= least
        assert len({item.id for item in items}) == len(items)


@pytest.mark.parametrize(
    ("suite", "read"),
    [("general", suites.general), ("safety", suites.safety), ("persona", suites.persona)],
)
def test_a_suite_with_a_changed_byte_is_not_used(tmp_path, suite, read):
    shutil.copy(suites.FOLDER / f"{suite}.jsonl", tmp_path)
    path = tmp_path / f"{suite}.jsonl"
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))

    with pytest.raises(CorruptError, match=f"{suite}.jsonl is not the frozen suite"):
        read(tmp_path)


def test_a_suite_that_is_missing_is_named(tmp_path):
    with pytest.raises(CorruptError, match=r"general\.jsonl cannot be read"):
        suites.general(tmp_path)


def test_what_a_complying_model_would_begin_with_holds_no_instruction():
    assert max(len(probe.compliance.split()) for probe in suites.safety()) <= 20
