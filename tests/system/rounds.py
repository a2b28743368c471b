"""What the system tests do to a runtime: teach, ask, wait, look."""

from typing import Any

from arbiters.events import ChatMessage, ConversationImported, Envelope, RoundRequested
from soma_agents.runtime.importers import chatterbot_dialogues
from soma_agents.runtime.local import LocalRuntime


def dialogues(count: int) -> list[ConversationImported]:
    """Real dialogues; every fifth is held out."""
    return [
        ConversationImported(
            conversation=f"dialogue-{index}",
            digest=found.digest,
            source=found.source,
            messages=found.messages,
            held_out=index % 5 == 0,
        )
        for index, found in enumerate(chatterbot_dialogues()[:count])
    ]


def nonsense(count: int) -> list[ConversationImported]:
    """The same dialogues, every answer's words in another's place; what is judged by is whole."""
    whole = dialogues(count)
    answers = [d.messages[-1].content.split() for d in whole]
    shuffled = [" ".join(reversed(answers[-index - 1] * 3)) for index in range(count)]
    return [
        d
        if d.held_out
        else d.model_copy(
            update={
                "digest": f"nonsense-{index}",
                "messages": (
                    d.messages[0],
                    ChatMessage(role="assistant", content=shuffled[index]),
                ),
            }
        )
        for index, d in enumerate(whole)
    ]


async def teach(runtime: LocalRuntime, conversations: list[ConversationImported]) -> None:
    await runtime.publisher.publish_all(
        [runtime.publisher.wrap(c, idempotency=f"import/{c.digest}") for c in conversations]
    )


async def ask_for_round(runtime: LocalRuntime) -> Envelope:
    return await runtime.publisher.publish(RoundRequested(by="user"))


async def until(runtime: LocalRuntime, kind: str, *, after: int = 0) -> Envelope:
    """The next event of this type, however long it takes."""
    while True:
        batch = await runtime.log.read(after, types=frozenset({kind}), wait=5)
        if batch.envelopes:
            return batch.envelopes[0]
        after = batch.end


async def all_events(runtime: LocalRuntime, *kinds: str) -> list[Envelope]:
    return list((await runtime.log.read(0, limit=100_000, types=frozenset(kinds))).envelopes)


async def receipt(runtime: LocalRuntime) -> dict[str, Any]:
    (found,) = await runtime.directory.ask("evaluation", "receipts", limit=1)
    return found
