"""What people think of a reply: once, of something that exists, and in a form that can be used."""

import asyncio

import pytest


@pytest.fixture
async def inference(soma):
    return (await soma.chat("Hello")).json()["soma_inference"]


async def judge(soma, target, name="rating", value=1.0, **more):
    body = {"target": target, "name": name, "value": value} | more
    return await soma.http.post("/feedback", json=body)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rating", -1), ("rating", 0.5), ("comment", "too long"), ("demonstration", "Say: hi.")],
)
async def test_a_reply_is_judged(soma, inference, name, value):
    answer = await judge(soma, inference, name, value)

    assert answer.status_code == 201
    (given,) = await soma.events("FeedbackGiven")
    assert (given.payload["name"], given.payload["value"]) == (name, value)
    assert given.payload["target"] == inference


async def test_a_conversation_is_judged(soma):
    conversation = (await soma.chat("Hello")).json()["soma_conversation"]

    answer = await judge(soma, conversation, target_kind="conversation")

    assert answer.status_code == 201


async def test_one_reply_is_preferred_to_another(soma, inference):
    other = (await soma.chat("Hello again")).json()["soma_inference"]

    assert (await judge(soma, inference, "preference", other)).status_code == 201
    assert (await judge(soma, inference, "preference", "none")).status_code == 404


async def test_the_same_feedback_twice_is_one_event(soma, inference):
    first, second = await judge(soma, inference), await judge(soma, inference)

    assert (first.status_code, second.status_code) == (201, 200)
    assert (first.json()["duplicate"], second.json()["duplicate"]) == (False, True)
    assert first.json()["feedback"] == second.json()["feedback"]
    assert len(await soma.events("FeedbackGiven")) == 1


async def test_the_same_feedback_many_times_at_once_is_one_event(soma, inference):
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(judge(soma, inference)) for _ in range(8)]

    assert sorted(task.result().status_code for task in asked) == [200] * 7 + [201]
    assert len(await soma.events("FeedbackGiven")) == 1


async def test_a_changed_mind_counts_each_time(soma, inference):
    for value in (1, -1, 1):
        assert (await judge(soma, inference, value=value)).status_code == 201

    ratings = [event.payload["value"] for event in await soma.events("FeedbackGiven")]
    assert ratings == [1, -1, 1]


async def test_an_unknown_target_is_not_judged(soma):
    answer = await judge(soma, "nothing")

    assert answer.status_code == 404
    assert await soma.events("FeedbackGiven") == []
