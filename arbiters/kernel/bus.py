"""Saying events: from a value to an envelope in the log."""

from collections.abc import Sequence

from arbiters.envelope import Envelope, as_text
from arbiters.errors import InvalidError
from arbiters.events import Event
from arbiters.ports import Clock, EventLog, Ids


def _key(event: Event, user: str) -> str:
    for field in ("conversation", "round"):
        value = getattr(event, field, None)
        if isinstance(value, str):
            return value
    return user


def _body(event: Event) -> str:
    try:
        # What `model_dump_json` does, on a shorter way.
        return event.__pydantic_serializer__.to_json(event).decode()
    except ValueError as error:
        raise InvalidError(
            f"{event.type} cannot be said: {error}; it may hold what JSON can, in Unicode"
        ) from error


class Publisher:
    """Puts events on the bus in somebody's name."""

    def __init__(self, *, log: EventLog, clock: Clock, ids: Ids, producer: str) -> None:
        self._log = log
        self._clock = clock
        self._ids = ids
        self._producer = producer

    def wrap(
        self,
        event: Event,
        *,
        tenant: str = "local",
        user: str = "owner",
        cause: Envelope | None = None,
        idempotency: str | None = None,
    ) -> Envelope:
        """The envelope for an event; what is caused inherits tenant, user and correlation.

        Raises:
            InvalidError: the event holds what is not Unicode.
        """
        identity = self._ids.new()
        if cause is not None:
            tenant, user = cause.tenant, cause.user
        return Envelope(
            offset=0,
            id=identity,
            type=event.type,
            version=event.version,
            time=as_text(self._clock.now()),
            tenant=tenant,
            user=user,
            key=_key(event, user),
            producer=self._producer,
            cause=cause.id if cause else None,
            correlation=cause.correlation if cause else identity,
            idempotency=idempotency or identity,
            body=_body(event),
        )

    async def publish(
        self,
        event: Event,
        *,
        tenant: str = "local",
        user: str = "owner",
        cause: Envelope | None = None,
        idempotency: str | None = None,
    ) -> Envelope:
        """Append one event and return its envelope with its offset, once it is durable."""
        envelope = self.wrap(event, tenant=tenant, user=user, cause=cause, idempotency=idempotency)
        (offset,) = await self._log.append([envelope])
        return envelope._replace(offset=offset)

    async def publish_all(self, envelopes: Sequence[Envelope]) -> list[int]:
        """Append prepared envelopes as one group."""
        return await self._log.append(envelopes)
