"""A flood is turned away at the door, and nobody else with it."""

import asyncio
import os

import pytest

from soma_agents.web import refusals
from soma_agents.web.last_word import middlewares
from soma_agents.web.refusals import RepeatRefusals


class Replica:
    """Refuses those who bear the key `loud`; counts what reaches it."""

    def __init__(self):
        self.asked = 0

    async def __call__(self, scope, _receive, send):
        self.asked += 1
        loud = dict(scope["headers"]).get(b"authorization") == b"loud"
        headers = [(b"retry-after", b"1")]
        await send(
            {"type": "http.response.start", "status": 429 if loud else 200, "headers": headers}
        )
        await send({"type": "http.response.body", "body": b"wait" if loud else b"hello"})


class Door:
    def __init__(self):
        self.replica = Replica()
        self._app = RepeatRefusals(self.replica)

    async def ask(self, key, *, path="/v1/chat/completions", method="POST"):
        said = []

        async def send(message):
            said.append(message)

        headers = [(b"authorization", key)]
        await self._app(
            {"type": "http", "method": method, "path": path, "headers": headers}, None, send
        )
        start, body = said
        return start["status"], dict(start["headers"]), body["body"]


@pytest.fixture
def door():
    yield Door()
    if hasattr(os, "SCHED_BATCH"):  # the test's loop ended before the flood was over
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


async def test_the_second_refusal_is_the_first_ones_words_without_troubling_the_replica(door):
    first = await door.ask(b"loud")

    again = await door.ask(b"loud")

    assert again == first == (429, {b"retry-after": b"1"}, b"wait")
    assert door.replica.asked == 1


async def test_others_and_other_requests_of_the_same_caller_get_through(door):
    await door.ask(b"loud")

    quiet = await door.ask(b"quiet")
    await door.ask(b"loud", path="/feedback")
    await door.ask(b"loud", method="GET")

    assert quiet[0] == 200
    assert door.replica.asked == 4


async def test_a_refusal_is_soon_forgotten(door, monkeypatch):
    monkeypatch.setattr(refusals, "REPEAT_SECONDS", 0.0)
    await door.ask(b"loud")

    await door.ask(b"loud")

    assert door.replica.asked == 2


async def test_answers_are_never_repeated(door):
    await door.ask(b"quiet")

    await door.ask(b"quiet")

    assert door.replica.asked == 2


async def test_no_more_callers_are_remembered_than_there_is_room_for(door, monkeypatch):
    monkeypatch.setattr(refusals, "_CALLERS", 1)
    await door.ask(b"loud")

    await door.ask(b"loud", path="/v1/completions")
    await door.ask(b"loud", path="/v1/completions")

    assert door.replica.asked == 3


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system knows no SCHED_BATCH")
async def test_who_turns_a_flood_away_interrupts_nobody_until_it_is_over(door, monkeypatch):
    monkeypatch.setattr(refusals, "CALM_SECONDS", 0.05)

    async with asyncio.timeout(10):
        await door.ask(b"loud")
        alone = os.sched_getscheduler(0)
        await door.ask(b"loud")
        flooded = os.sched_getscheduler(0)
        while os.sched_getscheduler(0) != os.SCHED_OTHER:  # noqa: ASYNC110 — nobody is told of it
            await asyncio.sleep(0)

    assert (alone, flooded) == (os.SCHED_OTHER, os.SCHED_BATCH)


def test_serve_is_given_it():
    assert RepeatRefusals in [each.cls for each in middlewares()]
