"""A few hundred simulated power cuts; `python -m bench.powercut` makes twenty thousand."""

from random import Random

import pytest

from bench.powercut.cuts import WORKLOADS, cut, record
from bench.powercut.disk import Disk
from bench.powercut.recorder import ROOT, Create, Rename, Sync, SyncDirectory, Truncate, Write
from bench.powercut.weaknesses import WEAKNESSES

pytestmark = pytest.mark.slow

FATES = 400
WEAK = [(weakness.workload, name) for name, weakness in WEAKNESSES.items()]
A, B = b"a" * 1024, b"b" * 1024


@pytest.fixture(scope="module")
def recordings():
    return record([*((name, None) for name in WORKLOADS), *WEAK])


@pytest.fixture
def fates():
    """fates(effects) is the set of everything that may be left of them, name → content."""

    def play(*effects):
        disk = Disk()
        for effect in effects:
            disk.apply(effect)
        left = [disk.lose_power(Random(seed)) for seed in range(FATES)]
        return {tuple(sorted(tree.items())) for tree in left}

    return play


def named(*effects):
    """Effects on a file, number 1, whose name is durable."""
    return Create(ROOT, "f", 1, is_directory=False), SyncDirectory(ROOT), *effects


# --- the simulated disk --------------------------------------------------------------------


def test_what_was_synced_is_all_that_can_be_left(fates):
    left = fates(*named(Write(1, 0, A), Write(1, 512, B), Truncate(1, 700), Sync(1)))

    assert left == {(("f", A[:512] + B[:188]),)}


def test_an_unsynced_write_is_lost_or_kept_or_torn(fates):
    left = {content for ((_, content),) in fates(*named(Write(1, 0, A), Sync(1), Write(1, 0, B)))}

    assert {A, B, A[:512] + B[:512], B[:512] + A[:512]} <= left
    assert any(content.rstrip(b"a") == B[: content.count(b"b")] for content in left - {A, B})
    assert any(content.count(b"b") % 512 for content in left)
    assert {len(content) for content in left} == {1024}


def test_a_later_write_may_land_without_an_earlier_one(fates):
    left = fates(*named(Write(1, 0, A), Write(1, 1024, B)))

    assert (("f", bytes(1024) + B),) in left
    assert (("f", A),) in left
    assert (("f", b""),) in left


def test_a_synced_file_is_lost_with_its_name(fates):
    left = fates(Create(ROOT, "f", 1, is_directory=False), Write(1, 0, A), Sync(1))

    assert left == {(), (("f", A),)}


def test_an_unsynced_rename_happened_or_did_not(fates):
    left = fates(*named(Write(1, 0, A), Sync(1), Rename(ROOT, "f", "g", 1)))

    assert left == {(("f", A),), (("g", A),)}


# --- SOMA on it ----------------------------------------------------------------------------


@pytest.mark.parametrize("workload", WORKLOADS)
async def test_nothing_acknowledged_is_lost_and_nothing_is_damaged(recordings, workload):
    tally = await cut(workload, recordings[workload, None], cuts=80, seed=1)

    assert tally.failures == []


@pytest.mark.parametrize(("workload", "weakness"), WEAK)
async def test_a_weakness_is_found(recordings, workload, weakness):
    tally = await cut(workload, recordings[workload, weakness], cuts=300, seed=1)

    assert tally.failures
