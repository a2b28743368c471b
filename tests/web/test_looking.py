"""Events, causes, dead letters, status, health and metrics over HTTP."""

import json
from pathlib import Path

import httpx2

from arbiters.records import DeadLetter
from soma_agents.app.verify import verify


async def test_events_come_as_json_lines(soma):
    await soma.chat("Hello")

    answer = await soma.http.get("/api/events?types=MessageReceived,ReplyGiven")

    events = [json.loads(line) for line in answer.text.splitlines()]
    assert [event["type"] for event in events] == ["MessageReceived", "ReplyGiven"]
    after = await soma.http.get(f"/api/events?after={events[0]['offset']}&types=ReplyGiven&limit=1")
    assert len(after.text.splitlines()) == 1
    assert (await soma.http.get("/api/events?types=Nonsense")).status_code == 400


async def test_events_are_followed_as_they_come(soma, url):
    path = f"{url}/api/events?follow=true&types=MessageReceived"
    async with httpx2.AsyncClient() as http, http.stream("GET", path) as answer:
        lines = answer.aiter_lines()
        for text in ("one", "two"):
            await soma.chat(text)
            assert json.loads(await anext(lines))["payload"]["content"] == text


async def test_why_tells_causes_and_consequences(soma):
    await soma.chat("Hello")
    (received,), (given,) = (
        await soma.events("MessageReceived"),
        await soma.events("ReplyGiven"),
    )

    why = (await soma.http.get(f"/api/events/{given.id}/why")).json()
    assert [event["id"] for event in why["because"]] == [received.id]
    caused = (await soma.http.get(f"/api/events/{received.id}/why")).json()["caused"]
    assert given.id in {event["id"] for event in caused}
    assert (await soma.http.get("/api/events/none/why")).status_code == 404


async def test_dead_letters_are_listed_and_replayed(soma):
    await soma.chat("Hello")
    (received,) = await soma.events("MessageReceived")
    ledger = soma.runtime.directory._hosts["user_profile"]._ledger
    async with ledger.transaction():
        await ledger.bury(
            DeadLetter(envelope=received, attempts=5, error="it broke", at=received.at)
        )

    (letter,) = (await soma.http.get("/api/dead-letters")).json()["data"]
    assert (letter["arbiter"], letter["event"]) == ("user_profile", received.id)
    path = f"/api/dead-letters/user_profile/{received.id}/replay"
    assert (await soma.http.post(path)).json()["handled"] is True
    assert (await soma.http.get("/api/dead-letters")).json()["data"] == []
    assert (await soma.http.post(path)).status_code == 404


async def test_status_says_who_is_in_service(soma):
    status = (await soma.http.get("/api/status")).json()

    assert status["ready"] is True
    assert status["champion"] == {"name": "soma-v0", "id": soma.services.model.id}
    assert status["round"] is None


async def test_health_decodes_a_token_and_remembers_it_for_a_moment(soma):
    first, second = await soma.http.get("/healthz"), await soma.http.get("/healthz")

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == {"status": "ok", "champion": "soma-v0"}
    assert len(soma.engine.requests) == 1


async def test_an_engine_that_cannot_speak_is_ill(soma):
    soma.engine.broken.add(None)

    answer = await soma.http.get("/healthz")

    assert answer.status_code == 503
    assert answer.json()["status"] == "ill"


async def test_metrics_count_requests_by_route(soma):
    await soma.chat("Hello")
    await soma.http.get("/nowhere/that/exists")

    text = (await soma.http.get("/metrics")).text

    route = '{method="POST",route="/v1/chat/completions",status="200"} 1.0'
    assert f"soma_http_requests_total{route}" in text
    assert "nowhere" not in text
    assert 'soma_champion{model="soma-v0"} 1.0' in text


async def test_the_pages_and_the_description_of_the_api_are_served(soma):
    assert "<title>SOMA</title>" in (await soma.http.get("/")).text
    assert (await soma.http.get("/docs")).status_code == 200
    assert (await soma.http.get("/static/app.js")).status_code == 200
    paths = (await soma.http.get("/openapi.json")).json()["paths"]
    assert {"/v1/chat/completions", "/api/reason", "/feedback", "/healthz"} <= paths.keys()


def databases(directory):
    return {path.name for folder in ("log", "state") for path in directory.glob(f"{folder}/*.db")}


async def test_a_snapshot_holds_every_database_and_lies_below_the_data_directory(soma):
    await soma.chat("Hello")

    answer = (await soma.http.post("/api/snapshot")).json()

    home = soma.services.settings.home
    directory = Path(answer["directory"])
    assert directory.parent == home / "run" / "snapshots"
    assert databases(directory) == databases(home)
    assert all(finding["ok"] for finding in verify(soma.services.settings, directory))
    assert answer["events"] >= 2
