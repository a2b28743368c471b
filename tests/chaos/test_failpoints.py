"""Every step of a round struck by every fault: one verdict, nothing doubled, and the next round works."""

import asyncio
import multiprocessing
import runpy
import signal
from collections import Counter
from functools import partial
from itertools import product
from typing import get_args, get_type_hints

import pytest

from arbiters.records import RoundState
from tests.chaos import failpoints
from tests.chaos.failpoints import FAULTS, MOMENTS, STEPS, play

ONCE = (
    "RoundStarted",
    "TrainingRequested",
    "CandidateRegistered",
    "ComparisonRequested",
    "ModelPromoted",
    "CandidateRejected",
    "CandidateHeld",
    "EvaluationFinished",
    "RoundFinished",
)
"""What may be said of a round once. (Work that was done again may be reported again.)"""


@pytest.fixture(scope="module")
def exercised(request):
    """Where rounds were struck; in the end that must be wherever they were to be struck."""
    struck = set()
    yield struck
    items = [item for item in request.session.items if item.path == request.path]
    wanted = {item.callspec.id for item in items if hasattr(item, "callspec")}
    assert struck == wanted


@pytest.fixture(scope="module")
def processes():
    """Processes that are made in a moment, since they inherit what is imported."""
    context = multiprocessing.get_context("forkserver")
    slow = ["pandas", "pyarrow.parquet", "pyphen", "emoji", "vaderSentiment.vaderSentiment"]
    context.set_forkserver_preload(["pytest", "soma_agents.runtime.local", *slow])
    return context


async def kill(home, failpoint, processes):
    """A SOMA in a process of its own, killed at the failpoint."""
    place = (str(home), failpoint.step, failpoint.moment)
    victim = processes.Process(
        target=runpy.run_path, args=(failpoints.__file__, {"PLACE": place}), daemon=True
    )
    victim.start()
    await asyncio.to_thread(victim.join)
    assert victim.exitcode == -signal.SIGKILL
    failpoint.struck = 1


def verdict_of(failpoint):
    """What the round ends with: what hangs or breaks for good ends it, the rest is made good."""
    if failpoint.strikes < failpoints.FOR_GOOD:
        return "promoted"
    if (failpoint.step, failpoint.fault) == ("evaluate", "hang"):
        return "rejected"
    return "failed"


@pytest.mark.parametrize("failpoint", failpoints.every(), ids=str)
async def test_a_struck_round_ends_with_one_verdict_and_the_next_one_works(
    tmp_path, failpoint, processes, exercised
):
    home = tmp_path / "home"
    if failpoint.fault == "kill":
        await kill(home, failpoint, processes)

    await play(home, failpoint, partial(check, verdict_of(failpoint)))

    assert failpoint.struck > 0
    exercised.add(str(failpoint))


async def check(verdict, soma):
    """All that must hold after two rounds of which the first was struck."""
    end = await soma.log.verify()
    events = (await soma.log.read(0, limit=end)).envelopes
    finished = [event.payload for event in events if event.type == "RoundFinished"]
    assert [f["verdict"] for f in finished] == [verdict, "promoted"], finished
    assert all(f["because"] for f in finished)
    said = Counter((e.type, e.payload["round"]) for e in events if e.type in ONCE)
    assert set(said.values()) == {1}

    receipts = await soma.directory.ask("evaluation", "receipts")
    assert {r["round"]: r["verdict"] for r in receipts} == {
        f["round"]: f["verdict"] for f in finished
    }
    assert len(receipts) == 2
    promoted = [e.payload for e in events if e.type == "ModelPromoted"]
    passed = [e.payload for e in events if e.type == "EvaluationFinished"]
    passed = [p["candidate"] for p in passed if p["verdict"] == "promoted"]
    assert [p["model"] for p in promoted] == passed
    pointer = await soma.directory.ask("evaluation", "pointer")
    assert pointer.champion == passed[-1] == f"lora-of-{finished[-1]['round']}"
    # The one before is who the struck round left in service: nobody else ever was.
    assert pointer.previous == promoted[-1]["previous"]
    assert (pointer.previous in passed) == (verdict == "promoted")
    status = await soma.directory.ask("auto_training_coordinator", "status")
    assert status["round"] is None


def test_no_step_and_no_fault_is_left_out():
    pairs = {(each.step, each.moment, each.fault) for each in failpoints.every()}
    steps = set(get_args(get_type_hints(RoundState)["step"]))

    assert pairs == set(product(STEPS, MOMENTS, FAULTS))
    # A step of the coordinator that is new is one that is not struck yet. The last of these ends
    # with the pointer's move; a canary waits for people.
    assert steps - {"canary", "finished"} == {"exporting", "training", "evaluating"}
