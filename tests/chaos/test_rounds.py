"""A training round on a real cluster, from the command line, with a death in the middle."""

import json

import pytest

from soma_agents.runtime.importers import chatterbot_dialogues

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.slow]

ONCE = ("RoundStarted", "DatasetExported", "TrainingFinished", "EvaluationFinished")


def write_chats(path, count):
    lines = (
        json.dumps({"messages": [message.model_dump() for message in found.messages]})
        for found in chatterbot_dialogues()[:count]
    )
    path.write_text("\n".join(lines))


def events_of(daemon, kind):
    lines = daemon.http.get("/api/events", params={"types": kind}).text.splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.timeout(560)
def test_a_round_outlives_its_workshop_and_ends_with_one_verdict(daemon, tmp_path):
    write_chats(tmp_path / "chats.jsonl", 150)
    imported = json.loads(daemon.soma("import", str(tmp_path / "chats.jsonl"), "--json").stdout)
    daemon.http.post("/api/training/rounds")
    daemon.until(lambda: events_of(daemon, "TrainingProgressed"))

    daemon.kill("workshop")
    (finished,) = daemon.until(lambda: events_of(daemon, "RoundFinished"), seconds=480)

    receipt = json.loads(daemon.soma("receipts", "--json").stdout)[0]
    assert imported["conversations"] == 150
    assert receipt["verdict"] == finished["payload"]["verdict"]
    assert receipt["verdict"] in {"promoted", "held"}, receipt["because"]
    assert [len(events_of(daemon, kind)) for kind in ONCE] == [1, 1, 1, 1]
    expected = receipt["candidate"]["name"] if receipt["verdict"] == "promoted" else "soma-v0"
    assert daemon.status()["champion"]["name"] == expected
