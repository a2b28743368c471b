"""As whom SOMA speaks: the same system message in service, in training and in judging."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from arbiters.events import ChatMessage
from arbiters.records import Example

PERSONA = "You are SOMA, a helpful assistant who learns from the people it talks with."


def as_soma(messages: Sequence[ChatMessage], *more: str, system: str = "") -> list[ChatMessage]:
    """The conversation under SOMA's system message.

    The conversation's own system message comes first in it, or else the model's, `system`; then
    the persona, unless that was said; then `more`, such as what is known of the person.
    """
    own, said = system, list(messages)
    if said and said[0].role == "system":
        own, said = said[0].content, said[1:]
    persona = "" if PERSONA in own else PERSONA
    whole = "\n".join(part for part in (own, persona, *more) if part)
    return [ChatMessage(role="system", content=whole), *said]


def spoken(examples: Iterable[Example], *, system: str = "") -> Iterator[Example]:
    """The examples as they would have been said to SOMA; see `as_soma`."""
    return (replace(e, messages=tuple(as_soma(e.messages, system=system))) for e in examples)
