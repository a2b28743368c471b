"""Imports, rounds and receipts over HTTP."""


def conversation(number, **more):
    messages = [
        {"role": "user", "content": f"Question {number}"},
        {"role": "assistant", "content": f"Answer {number}"},
    ]
    return {"messages": messages, "source": "test", "digest": f"digest-{number}"} | more


async def take_in(soma, *conversations):
    return await soma.http.post("/api/import", json={"conversations": conversations})


async def test_conversations_are_imported_once(soma):
    first = await take_in(soma, conversation(1), conversation(2), conversation(2))
    second = await take_in(soma, conversation(2), conversation(3))

    assert first.json() == {"conversations": 2, "messages": 4, "duplicates": 1}
    assert second.json() == {"conversations": 1, "messages": 2, "duplicates": 1}
    assert len(await soma.events("ConversationImported")) == 3


async def imported(soma):
    """The conversations there are."""
    await soma.http.get("/api/memory/search?q=anything")  # waits for the newest
    return [one["id"] for one in (await soma.http.get("/api/conversation/list")).json()["data"]]


async def test_what_was_deleted_may_be_imported_again_once(soma):
    await take_in(soma, conversation(1), conversation(2))
    for _ in range(2):
        for kept in await imported(soma):
            await soma.http.delete(f"/api/conversation/{kept}")
        assert await imported(soma) == []

        first = await take_in(soma, conversation(1), conversation(1))
        second = await take_in(soma, conversation(1))

        assert first.json() == {"conversations": 1, "messages": 2, "duplicates": 1}
        assert second.json() == {"conversations": 0, "messages": 0, "duplicates": 1}
        assert len(await imported(soma)) == 1
    exported = (await soma.http.post("/api/training/export", json={})).json()
    assert exported["targets_by_kind"] == {"imported": 1}


async def test_an_import_keeps_when_it_happened_and_what_is_held_out(soma):
    await take_in(soma, conversation(1, happened_at="2024-05-06T07:08:09Z", held_out=True))

    (imported,) = await soma.events("ConversationImported")
    assert imported.payload["happened_at"] == "2024-05-06T07:08:09Z"
    assert imported.payload["held_out"] is True


async def test_an_import_may_be_larger_than_other_requests(soma):
    large = conversation(1)
    large["messages"][0]["content"] = "x" * 9_000_000

    assert (await take_in(soma, large)).status_code == 200


async def test_a_round_is_asked_for_and_followed(soma):
    asked = await soma.http.post("/api/training/rounds", json={})
    request = asked.json()["request"]

    assert asked.status_code == 202
    batch = await soma.runtime.log.read(0, types=frozenset({"RoundStarted"}), wait=10)
    while not batch.envelopes:
        batch = await soma.runtime.log.read(batch.end, types=frozenset({"RoundStarted"}), wait=10)
    followed = (await soma.http.get(f"/api/training/rounds/{request}")).json()
    assert followed["id"] == batch.envelopes[0].payload["round"]
    assert {"step", "progress", "verdict", "because", "seconds"} <= followed.keys()
    listed = (await soma.http.get("/api/training/rounds")).json()["data"]
    assert [one["id"] for one in listed] == [followed["id"]]
    assert (await soma.http.get("/api/training/rounds/none")).status_code == 404


async def test_statistics_and_receipts_are_there_before_anything_was_learnt(soma):
    stats = (await soma.http.get("/api/training/stats")).json()

    assert stats["round"] is None
    assert stats["because"]
    assert (await soma.http.get("/api/receipts")).json() == {"data": []}
    (base,) = (await soma.http.get("/api/models")).json()["data"]
    assert (base["name"], base["stage"]) == ("soma-v0", "champion")
