"""An event as it travels: in an envelope that says when, for whom and why it happened.

An envelope is a row of the log, and its event stays JSON until somebody asks for it: most of what
passes through a process is only passed on.
"""

from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from arbiters import events, model_events
from arbiters.errors import InvalidError
from arbiters.events import Event

EVENT_TYPES: dict[str, type[Event]] = {
    name: kind
    for module in (events, model_events)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
}
"""Everything that can happen, by its name on the bus."""
_KNOWN = {
    name: (cls.version, cls.__pydantic_validator__.validate_json)
    for name, cls in EVENT_TYPES.items()
}
"""Of each type: the newest version, and what reads its JSON as `model_validate_json` does, on a
shorter way: every event goes through here once for each arbiter."""


class Envelope(NamedTuple):
    """An event with its circumstances. `offset` is its place in the log, 0 before it is there."""

    offset: int
    id: str
    type: str
    version: int
    time: str
    """When it was said, as `as_text` writes it."""
    tenant: str
    user: str
    key: str
    """Order is kept among events of the same key (a conversation, a round, a user)."""
    producer: str
    cause: str | None
    correlation: str
    idempotency: str
    body: str | None
    """The event as JSON; None when it was erased."""

    @property
    def at(self) -> datetime:
        """When it was said."""
        return datetime.fromisoformat(self.time)

    @property
    def payload(self) -> dict[str, Any]:
        """The event's fields; none when it was erased."""
        return {} if self.body is None else from_json(self.body)

    def fields(self) -> dict[str, Any]:
        """As it is shown: with its event's fields instead of their JSON."""
        shown = self._asdict()
        shown["at"] = shown.pop("time")
        del shown["body"]
        return shown | {"payload": self.payload}

    def dump(self) -> str:
        """As JSON that `load` reads."""
        return to_json(self.fields()).decode()

    @classmethod
    def load(cls, text: str) -> "Envelope":
        """An envelope from what `dump` wrote."""
        fields = from_json(text)
        time = as_text(datetime.fromisoformat(fields.pop("at")))
        return cls(time=time, body=to_json(fields.pop("payload")).decode(), **fields)


def decode(envelope: Envelope) -> Event:
    """The event inside an envelope.

    Raises:
        InvalidError: the type is unknown, or its version is newer than this program's.
    """
    newest, read = _KNOWN.get(envelope.type, (0, None))
    if read is None:
        raise InvalidError(
            f"event {envelope.id} has unknown type {envelope.type!r}; was it written by a newer SOMA?"
        )
    if envelope.version > newest:
        raise InvalidError(
            f"event {envelope.id} is {envelope.type} version {envelope.version}, "
            f"this SOMA reads up to {newest}; upgrade SOMA"
        )
    return read(envelope.body or "{}")


def as_text(at: datetime) -> str:
    """A time as it is stored: UTC in one width, so that the text sorts as the time does."""
    return (at if at.tzinfo is UTC else at.astimezone(UTC)).isoformat(timespec="microseconds")
