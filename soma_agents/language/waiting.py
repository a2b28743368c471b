"""Requests that wait for a slot: tenants take turns, and each tenant's are first come first served."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue in which a busy tenant delays only itself."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._tenants.values())

    def __iter__(self) -> Iterator[T]:
        return (item for waiting in self._tenants.values() for item in waiting)

    def put(self, tenant: str, item: T) -> None:
        """Queue behind the tenant's other items."""
        self._tenants.setdefault(tenant, deque()).append(item)

    def peek(self) -> T | None:
        """The item whose turn it is."""
        return next((waiting[0] for waiting in self._tenants.values()), None)

    def pop(self) -> T:
        """Take the item whose turn it is; its tenant goes to the back."""
        tenant, waiting = next(iter(self._tenants.items()))
        item = waiting.popleft()
        if waiting:
            self._tenants.move_to_end(tenant)
        else:
            del self._tenants[tenant]
        return item

    def remove(self, item: T) -> bool:
        """Take an item out of turn; whether it was there."""
        for tenant, waiting in self._tenants.items():
            if item in waiting:
                waiting.remove(item)
                if not waiting:
                    del self._tenants[tenant]
                return True
        return False

    def clear(self) -> list[T]:
        """Take all."""
        items = list(self)
        self._tenants.clear()
        return items
