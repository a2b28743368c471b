"""Conversations that SOMA keeps, and those that a stateless client carries along."""

import asyncio
import json


async def test_reason_answers_and_goes_on_in_the_same_conversation(soma):
    first = (await soma.http.post("/api/reason", json={"message": "My cat is ill."})).json()
    second = await soma.http.post(
        "/api/reason",
        json={"message": "What did I say?", "conversation": first["conversation"]},
    )

    assert first["reply"] == "I am glad to hear that."
    assert second.json()["conversation"] == first["conversation"]
    prompt = soma.prompt()
    assert "My cat is ill." in prompt
    assert "I am glad to hear that." in prompt


async def test_a_conversation_that_outgrows_the_context_goes_on_with_its_newest_turns(soma):
    conversation, lefts = None, []
    for turn in range(6):
        message = f"Turn {turn}. " + "It rained. " * 200
        body = {"message": message, "max_tokens": 8} | (
            {"conversation": conversation} if conversation else {}
        )
        answer = await soma.http.post("/api/reason", json=body)
        assert answer.status_code == 200, answer.text
        conversation = answer.json()["conversation"]
        lefts.append(answer.json()["left_out"])

    prompt = soma.prompt()
    assert lefts[:2] == [0, 0]
    assert lefts[-1] > 0
    assert lefts == sorted(lefts)
    assert "Turn 5." in prompt
    assert "Turn 0." not in prompt
    assert prompt.index("Turn 4.") < prompt.index("Turn 5.")
    history = await soma.http.get(
        "/api/conversation/history", params={"conversation": conversation}
    )
    assert len(history.json()["data"]) == 12


async def test_reason_streams_with_ids(soma):
    answer = await soma.http.post("/api/reason", json={"message": "Hello", "stream": True})

    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    assert "".join(chunk["delta"] for chunk in chunks) == "I am glad to hear that."
    assert chunks[-1]["finish_reason"] == "stop"
    assert answer.headers["X-Soma-Inference"] == chunks[0]["soma_inference"]


async def test_reason_refuses_a_conversation_that_there_is_not(soma):
    answer = await soma.http.post("/api/reason", json={"message": "Hi", "conversation": "none"})

    assert answer.status_code == 404
    assert "'none'" in answer.json()["error"]["message"]
    assert await soma.events("MessageReceived") == []


async def test_a_stateless_client_stays_in_its_conversation(soma):
    first = (await soma.chat("Hello")).json()
    reply = first["choices"][0]["message"]["content"]
    second = (await soma.chat("Hello", reply, "And now?")).json()

    assert second["soma_conversation"] == first["soma_conversation"]
    received = await soma.events("MessageReceived")
    assert [event.payload["context"] for event in received] == [[], []]


async def test_a_client_that_changes_the_past_is_in_a_new_conversation(soma):
    first = (await soma.chat("Hello")).json()
    second = (await soma.chat("Hello", "Something I never said.", "And now?")).json()

    assert second["soma_conversation"] != first["soma_conversation"]
    received = await soma.events("MessageReceived")
    assert received[1].payload["context"][1]["content"] == "Something I never said."


async def test_the_same_beginning_twice_is_two_conversations(soma):
    first, second = (await soma.chat("Hello")).json(), (await soma.chat("Hello")).json()

    assert first["soma_conversation"] != second["soma_conversation"]


async def test_what_is_known_of_the_user_shapes_the_system_message(soma):
    await soma.http.put("/api/profile/name", json={"value": "Ada"})
    await soma.chat("Who am I?")

    prompt = soma.prompt()
    assert "name: Ada." in prompt
    assert "You are SOMA" in prompt


async def test_a_clients_own_system_prompt_is_kept(soma):
    messages = [
        {"role": "system", "content": "Answer in rhymes."},
        {"role": "user", "content": "Hello"},
    ]
    await soma.http.post("/v1/chat/completions", json={"model": "soma", "messages": messages})

    prompt = soma.prompt()
    assert prompt.index("Answer in rhymes.") < prompt.index("You are SOMA")


async def test_history_list_search_and_export_tell_what_was_said(soma):
    said = (await soma.http.post("/api/reason", json={"message": "A purple elephant"})).json()
    conversation = said["conversation"]

    history = await soma.http.get(f"/api/conversation/history?conversation={conversation}")
    assert [m["role"] for m in history.json()["data"]] == ["user", "assistant"]
    assert history.json()["data"][1]["inference"] == said["inference"]
    listed = await soma.http.get("/api/conversation/list")
    assert [c["id"] for c in listed.json()["data"]] == [conversation]
    found = await soma.http.get("/api/conversation/search?words=purple")
    assert found.json()["data"][0]["content"] == "A purple elephant"
    exported = await soma.http.get(f"/api/conversation/export?conversation={conversation}")
    assert exported.json()["messages"][0]["content"] == "A purple elephant"


async def test_what_was_understood_from_a_deleted_conversation_goes_with_it(soma):
    told = await soma.http.post("/api/reason", json={"message": "My name is Mira."})
    await soma.http.put("/api/profile/home", json={"value": "Lisbon"})

    await soma.http.delete(f"/api/conversation/{told.json()['conversation']}")

    known = (await soma.http.get("/api/profile")).json()["facts"]
    assert [fact["subject"] for fact in known] == ["home"]
    assert "Mira" not in str(await soma.events("FactStated"))


async def test_a_deleted_conversation_is_gone_from_history_and_log(soma):
    said = (await soma.http.post("/api/reason", json={"message": "My secret"})).json()
    conversation, inference = said["conversation"], said["inference"]
    judgement = {"target": inference, "name": "comment", "value": "about my secret"}
    await soma.http.post("/feedback", json=judgement)

    deleted = await soma.http.delete(f"/api/conversation/{conversation}")

    assert deleted.json()["erased_events"] == 3
    gone = await soma.http.get(f"/api/conversation/history?conversation={conversation}")
    assert gone.status_code == 404
    assert "secret" not in (await soma.http.get("/api/events")).text
    assert await soma.runtime.log.verify() > 0
    assert (await soma.http.delete("/api/conversation/none")).status_code == 404


async def test_a_profile_is_visible_editable_and_forgettable(soma):
    await soma.chat("My name is Grace.")
    await soma.http.put("/api/profile/home", json={"value": "Oslo"})
    changed = await soma.http.put("/api/profile/home", json={"value": "Bergen"})

    assert {f["subject"]: f["value"] for f in changed.json()["facts"]}["home"] == "Bergen"
    left = await soma.http.delete("/api/profile/home")
    assert "home" not in {fact["subject"] for fact in left.json()["facts"]}
    assert (await soma.http.delete("/api/profile/home")).status_code == 404


async def test_a_personality_has_a_history_and_can_be_restored(soma):
    current = (await soma.http.get("/api/personality/current")).json()
    assert len(current["dimensions"]) >= 15

    history = (await soma.http.get("/api/personality/history")).json()["data"]
    restored = await soma.http.post(
        "/api/personality/restore", json={"revision": history[-1]["revision"]}
    )

    assert restored.json()["dimensions"] == history[-1]["dimensions"]
    missing = await soma.http.post("/api/personality/restore", json={"revision": 999})
    assert missing.status_code == 404


async def test_what_was_said_of_oneself_is_known_in_the_next_conversation_until_forgotten(soma):
    await soma.chat("My name is Grace.")

    async with asyncio.timeout(5):
        await soma.chat("Hello")
        while "name: Grace." not in soma.prompt():
            await soma.chat("Hello")
    await soma.http.delete("/api/profile/name")
    await soma.chat("Hello again")

    assert "Grace" not in soma.prompt()


async def test_what_is_known_is_asked_for_once_while_nothing_changes(soma, monkeypatch):
    await soma.chat("Hello")
    asked, ask = [], soma.runtime.directory.ask

    def counted(arbiter, question, **arguments):
        asked.append(question)
        return ask(arbiter, question, **arguments)

    monkeypatch.setattr(soma.runtime.directory, "ask", counted)
    await soma.chat("How are you?")

    assert "profile" not in asked
