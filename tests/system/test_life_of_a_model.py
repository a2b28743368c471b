"""The life of a model on a real cluster, from the command line, with a death in the middle."""

import json

import pytest

from soma_agents.runtime.importers import chatterbot_dialogues

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.slow]

ONCE = ("RoundStarted", "DatasetExported", "TrainingFinished", "EvaluationFinished")


def teach(daemon, count):
    """Real dialogues, of which every fourth is to judge by."""
    conversations = [
        {
            "messages": [message.model_dump() for message in found.messages],
            "source": found.source,
            "digest": found.digest,
            "held_out": index % 4 == 0,
        }
        for index, found in enumerate(chatterbot_dialogues()[:count])
    ]
    return daemon.http.post("/api/import", json={"conversations": conversations}).json()


def events_of(daemon, kind):
    lines = daemon.http.get("/api/events", params={"types": kind}).text.splitlines()
    return [json.loads(line) for line in lines]


def champion(daemon):
    return daemon.status()["champion"]["name"]


@pytest.mark.timeout(1600)
def test_a_model_is_trained_through_a_crash_proven_promoted_undone_and_promoted_again(daemon):
    assert teach(daemon, 320)["conversations"] == 320
    daemon.http.post("/api/training/rounds")
    daemon.until(lambda: events_of(daemon, "TrainingProgressed"))

    daemon.kill("workshop")
    daemon.until(lambda: events_of(daemon, "RoundFinished"), seconds=1500)

    told = json.loads(daemon.soma("receipts", "--json").stdout)[0]
    assert told["verdict"] == "promoted", told["because"]
    low, high = told["target"]["interval"]
    assert 0 < low < high
    assert told["target"]["after"] < told["target"]["before"]
    assert all(rail["ok"] for rail in told["guardrails"])
    rails = {rail["name"] for rail in told["guardrails"]}
    assert {"forgetting", "safety", "personality", "latency", "triggers"} <= rails
    assert [len(events_of(daemon, kind)) for kind in ONCE] == [1, 1, 1, 1]

    assert champion(daemon) == told["candidate"]["name"] == "soma-v1"
    daemon.soma("rollback")
    assert champion(daemon) == "soma-v0"
    daemon.soma("promote", "soma-v1")
    assert champion(daemon) == "soma-v1"
