"""What was said in other conversations, beside the question that it may answer."""

from pathlib import Path

import pytest

from soma_agents.serving import memories

SAID = "We keep our spare key under the blue flower pot."
ASKED = "Where is the spare key?"
QUOTED = f'In an earlier conversation the user said: "{SAID}"'


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """The first comparison in a process loads tables; a machine may be busy."""
    monkeypatch.setattr(memories, "PATIENCE_SECONDS", 30)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def read(dataset, split):
    return Path(dataset, f"{split}.jsonl").read_text(encoding="utf-8")


async def say(soma, text, conversation=None, **options):
    body = {"message": text} | ({"conversation": conversation} if conversation else {})
    said = (await soma.http.post("/api/reason", json=body, **options)).json()["conversation"]
    await soma.http.get("/api/memory/search?q=anything", **options)  # waits for the newest
    return said


async def test_what_was_said_elsewhere_stands_last_in_the_system_message(soma):
    await say(soma, SAID)
    await say(soma, ASKED)

    system, _, rest = soma.prompt().partition("\nuser\n")
    assert system.endswith(QUOTED)
    assert ASKED in rest
    await soma.chat(ASKED)
    assert QUOTED in soma.prompt()


async def test_a_question_about_something_else_has_nothing_beside_it(soma):
    await say(soma, SAID)
    await say(soma, "What is the capital of Japan?")

    assert "earlier conversation" not in soma.prompt()


async def test_the_part_before_it_stays_a_known_prefix(soma):
    await say(soma, SAID)
    await say(soma, "What is the capital of Japan?")
    await say(soma, ASKED)

    plain, with_quotation = soma.engine.requests[-2:]
    end = with_quotation.shared
    assert 0 < plain.shared - end < 5
    assert plain.prompt[:end] == with_quotation.prompt[:end]


async def test_nothing_of_another_person_is_quoted(soma):
    ada, eve = (soma.services.keys.create(name, user=name) for name in ("ada", "eve"))
    await say(soma, SAID, headers=bearer(ada))
    await say(soma, ASKED, headers=bearer(eve))

    assert "earlier conversation" not in soma.prompt()


async def test_what_was_deleted_is_not_quoted(soma):
    conversation = await say(soma, SAID)
    await soma.http.delete(f"/api/conversation/{conversation}")
    await say(soma, ASKED)

    assert "earlier conversation" not in soma.prompt()


async def test_a_fact_that_was_taken_back_does_not_return_as_a_quotation(soma):
    await say(soma, "My dog is called Rex.")
    await soma.http.delete("/api/profile/pet.dog.name")
    await say(soma, "Is my dog Rex hungry?")

    assert "earlier conversation" not in soma.prompt()
    assert "pet dog name" not in soma.prompt()


async def test_words_that_were_imported_are_not_quoted(soma):
    turns = [{"role": "user", "content": SAID}, {"role": "assistant", "content": "Good."}]
    body = {"conversations": [{"messages": turns, "source": "test", "digest": "digest-1"}]}
    await soma.http.post("/api/import", json=body)
    await say(soma, ASKED)

    assert "earlier conversation" not in soma.prompt()


async def test_a_quotation_gives_way_to_a_prompt_that_fills_the_context(soma):
    await say(soma, SAID)
    filled = f"{'word ' * 1600}. {ASKED}"
    answer = await soma.chat(filled, max_tokens=400)

    assert answer.status_code == 200
    assert "earlier conversation" not in soma.prompt()
    assert soma.prompt().count("word ") == 1600


async def test_it_is_not_learnt_from_as_if_somebody_had_said_it(soma):
    await say(soma, SAID)
    await say(soma, ASKED)
    inference = (await soma.events("ReplyGiven"))[-1].payload["inference"]
    liked = {"target": inference, "name": "rating", "value": 1.0}
    await soma.http.post("/feedback", json=liked)
    exported = (await soma.http.post("/api/training/export", json={})).json()

    written = "".join(read(exported["path"], split) for split in ("train", "validation", "heldout"))
    assert QUOTED in soma.prompt()
    assert ASKED in written
    assert "earlier conversation" not in written
