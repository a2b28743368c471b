"""What an arbiter is: handlers that hear one type of event each and say others."""

from collections.abc import AsyncIterator, Awaitable, Callable
from inspect import getmembers
from typing import Any, ClassVar, TypeVar

from arbiters.events import Envelope, Event

Said = AsyncIterator[Event]
"""What a handler yields: the events it has to say about the one it heard."""

Handler = Callable[[Any, Any, Envelope], Said]
E_ = TypeVar("E_", bound=Event)
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


def on(
    *events: type[Event],
) -> Callable[[Callable[[Any, E_, Envelope], Said]], Callable[[Any, E_, Envelope], Said]]:
    """Mark an async generator method as the handler of these types of event."""

    def mark(handler: Callable[[Any, E_, Envelope], Said]) -> Callable[[Any, E_, Envelope], Said]:
        handler.__hears__ = events  # type: ignore[attr-defined]
        return handler

    return mark


def query(method: F) -> F:
    """Mark an async method as a question that others may ask."""
    method.__query__ = True  # type: ignore[attr-defined]
    return method


class Arbiter:
    """A role on the bus. Subclasses set `name` and mark handlers with `@on`.

    A handler is an async generator `(self, event, envelope)`: it changes its own stores and yields
    events. Both take effect together, once, or not at all.
    """

    name: ClassVar[str]
    batch: ClassVar[int] = 500
    """Events handled in one transaction. 1 publishes at once whatever a long handler yields."""

    def handlers(self) -> dict[str, Handler]:
        """Event type → unbound handler."""
        return {
            event.__name__: member
            for _, member in getmembers(type(self))
            for event in getattr(member, "__hears__", ())
        }

    def queries(self) -> frozenset[str]:
        """Names of the questions that may be asked."""
        return frozenset(
            name for name, member in getmembers(type(self)) if getattr(member, "__query__", False)
        )
