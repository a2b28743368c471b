import asyncio
import os
import signal

import psutil
import pytest

from arbiters.events import ModelPromoted, PromotionRequested, RollbackRequested
from tests.system.rounds import (
    all_events,
    ask_for_round,
    dialogues,
    nonsense,
    receipt,
    teach,
    until,
)

pytestmark = [pytest.mark.model, pytest.mark.slow]


async def test_a_model_is_trained_through_a_crash_proven_promoted_undone_and_promoted_again(
    settings, start
):
    soma = await start(settings)
    await teach(soma, dialogues(250))
    asked = await ask_for_round(soma)
    await until(soma, "TrainingProgressed", after=asked.offset)
    _kill_trainers()
    await soma.close()

    soma = await start(settings)
    await until(soma, "RoundFinished", after=asked.offset)

    told = await receipt(soma)
    assert told["verdict"] == "promoted", told["because"]
    low, high = told["target"]["interval"]
    assert 0 < low < high
    assert told["target"]["after"] < told["target"]["before"]
    assert all(rail["ok"] for rail in told["guardrails"])
    assert {"forgetting", "safety", "personality", "latency"} <= {
        rail["name"] for rail in told["guardrails"]
    }
    for kind in ("RoundStarted", "TrainingFinished", "EvaluationFinished", "RoundFinished"):
        assert len(await all_events(soma, kind)) == 1
    statistics = await soma.directory.ask(
        "conversation_history", "statistics", tenant="local", user="owner"
    )
    assert statistics["conversations"] == 250

    await _undo_and_redo(soma, asked.offset)


async def _undo_and_redo(soma, offset):
    promoted = ModelPromoted.model_validate(
        (await until(soma, "ModelPromoted", after=offset)).payload
    )
    undone = await soma.publisher.publish(RollbackRequested())
    await until(soma, "ModelRolledBack", after=undone.offset)
    pointer = await soma.directory.ask("evaluation", "pointer")
    assert pointer.champion == promoted.previous

    again = await soma.publisher.publish(PromotionRequested(model=promoted.model))
    await until(soma, "ModelPromoted", after=again.offset)
    pointer = await soma.directory.ask("evaluation", "pointer")
    assert pointer.champion == promoted.model


async def test_a_candidate_trained_on_nonsense_is_not_promoted(settings, start):
    soma = await start(settings)
    await teach(soma, nonsense(150))
    before = await soma.directory.ask("evaluation", "pointer")

    asked = await ask_for_round(soma)
    await until(soma, "RoundFinished", after=asked.offset)

    told = await receipt(soma)
    assert told["verdict"] in {"rejected", "held"}
    assert await soma.directory.ask("evaluation", "pointer") == before


async def test_too_little_material_ends_the_round_with_a_reason(settings, start):
    soma = await start(settings)
    await teach(soma, dialogues(4))

    asked = await ask_for_round(soma)
    finished = await asyncio.wait_for(until(soma, "RoundFinished", after=asked.offset), 60)

    assert finished.payload["verdict"] == "failed"
    assert "examples" in finished.payload["because"]


def _kill_trainers() -> None:
    for child in psutil.Process(os.getpid()).children(recursive=True):
        if any("soma_agents.training" in part for part in child.cmdline()):
            child.send_signal(signal.SIGKILL)
