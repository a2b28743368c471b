"""What was said before, found by meaning, over HTTP and from the command line."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from soma_agents.web import memory

SOMA = Path(sys.executable).with_name("soma")

SAID = (
    "My cat is called Minka and sleeps on the sofa.",
    "The train to Bergen leaves at seven.",
    "I bake bread with rye flour on Sundays.",
)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


async def say(soma, *texts, **options):
    """The conversations, one for each text."""
    said = [await soma.http.post("/api/reason", json={"message": t}, **options) for t in texts]
    return [answer.json()["conversation"] for answer in said]


async def recall(soma, q, **options):
    answer = await soma.http.get("/api/memory/search", params={"q": q} | options)
    return [message["content"] for message in answer.json()["data"]]


@pytest.mark.parametrize(
    ("q", "number"),
    [("the name of the cats", 0), ("When do trains leave?", 1), ("baking a loaf of bread", 2)],
)
async def test_what_is_most_like_the_question_comes_first(soma, q, number):
    await say(soma, *SAID)

    answer = await soma.http.get("/api/memory/search", params={"q": q, "limit": 2})

    first, second = answer.json()["data"]
    assert first["content"] == SAID[number]
    assert first["role"] == "user"
    assert 1 >= first["likeness"] > second["likeness"]


async def test_nobody_finds_what_another_said(soma):
    ada, eve = (soma.services.keys.create(name, user=name) for name in ("ada", "eve"))
    await say(soma, SAID[0], headers=bearer(ada))

    found = await soma.http.get("/api/memory/search?q=cat", headers=bearer(eve))

    assert found.json() == {"data": []}


async def test_what_was_deleted_is_not_found(soma):
    conversation, _ = await say(soma, *SAID[:2])
    assert SAID[0] in await recall(soma, "cat", limit=1000)

    await soma.http.delete(f"/api/conversation/{conversation}")

    assert SAID[0] not in await recall(soma, "cat", limit=1000)


async def test_only_the_newest_are_looked_through(soma, monkeypatch):
    await say(soma, *SAID)
    monkeypatch.setattr(memory, "CHARACTERS", 80)  # the last reply and the last message

    assert set(await recall(soma, "cat")) == {SAID[2], "I am glad to hear that."}


@pytest.mark.parametrize("query", ["", "q=", "q=cat&limit=0"])
async def test_a_question_without_words_is_refused(soma, query):
    assert (await soma.http.get(f"/api/memory/search?{query}")).status_code == 400


async def test_the_command_line_shows_the_same(soma, url):
    await say(soma, *SAID)
    home = soma.services.settings.home
    (home / "run").mkdir(exist_ok=True)
    (home / "run" / "soma.json").write_text(json.dumps({"url": url}))
    command = [str(SOMA), "--home", str(home), "memory", "search", "the cats", "--limit", "1"]

    processes = [
        await asyncio.create_subprocess_exec(*command, *more, stdout=asyncio.subprocess.PIPE)
        for more in ([], ["--json"])
    ]
    (shown, _), (told, _) = [await process.communicate() for process in processes]

    assert "Minka" in shown.decode()
    assert json.loads(told)[0]["content"] == SAID[0]
