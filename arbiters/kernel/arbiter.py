"""What an arbiter is: handlers that hear one type of event each and say others."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import cache
from inspect import getmembers
from types import AsyncGeneratorType
from typing import Any, ClassVar, TypeGuard, TypeVar

from arbiters.envelope import Envelope
from arbiters.events import Event

Said = AsyncGenerator[Event]
"""What a handler yields: the events it has to say about the one it heard."""

Handler = Callable[[Any, Any, Envelope], Said | Awaitable[None]]
H = TypeVar("H", bound=Handler)
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


def on(*events: type[Event]) -> Callable[[H], H]:
    """Mark a method as the handler of these types of event."""

    def mark(handler: H) -> H:
        handler.__hears__ = events  # type: ignore[attr-defined]
        return handler

    return mark


def query(method: F) -> F:
    """Mark an async method as a question that others may ask."""
    method.__query__ = True  # type: ignore[attr-defined]
    return method


class Arbiter:
    """A role on the bus. Subclasses set `name` and mark handlers with `@on`.

    A handler `(self, event, envelope)` changes its own stores and yields events; one that has
    nothing to say is a coroutine. Both take effect together, once, or not at all.
    """

    name: ClassVar[str]
    batch: ClassVar[int] = 1000
    """Events handled in one transaction. 1 publishes at once whatever a long handler yields."""
    limit_s: ClassVar[float | None] = 120.0
    """Seconds for a batch, or from one event that a long handler yields to its next; None: ever."""

    @classmethod
    @cache
    def handlers(cls) -> dict[str, Handler]:
        """Event type → unbound handler."""
        return {
            event.__name__: member
            for _, member in getmembers(cls)
            for event in getattr(member, "__hears__", ())
        }

    async def hear(self, event: Event, envelope: Envelope) -> Said:
        """Let the handler of this event's type run; what it says, as it says it."""
        said: Any = self.handlers()[event.type](self, event, envelope)
        if _speaks(said):
            async with aclosing(said):
                async for another in said:
                    yield another
        else:
            await said

    async def react(self, event: Event, envelope: Envelope) -> list[Event]:
        """Let the handler of this event's type run; all that it said."""
        said: Any = self.handlers()[envelope.type](self, event, envelope)
        if _speaks(said):
            async with aclosing(said):
                return [another async for another in said]
        await said
        return []

    def queries(self) -> frozenset[str]:
        """Names of the questions that may be asked."""
        return frozenset(
            name for name, member in getmembers(type(self)) if getattr(member, "__query__", False)
        )


def _speaks(said: object) -> TypeGuard[Said]:
    return isinstance(said, AsyncGeneratorType)  # asking the abstract class is slow
