"""Reaching the arbiters wherever they run: in this process or as Ray actors."""

from collections.abc import Sequence
from typing import Any, Protocol

from arbiters.records import DeadLetter


class Directory(Protocol):
    """Finds arbiters by name. Arguments and answers are values that can be sent elsewhere."""

    def names(self) -> Sequence[str]:
        """The arbiters there are."""
        ...

    async def ask(self, arbiter: str, question: str, *, at_least: int = 0, **arguments: Any) -> Any:
        """Put a question (a `@query`) to an arbiter once it has seen log offset `at_least`.

        Raises:
            NotFoundError: there is no such arbiter or question.
            UnavailableError: it is not there now, or did not get as far as `at_least`.
        """
        ...

    async def dead_letters(self, arbiter: str) -> list[DeadLetter]:
        """What an arbiter could not handle, oldest first."""
        ...

    async def replay(self, arbiter: str, event: str) -> None:
        """Let an arbiter try a dead letter again.

        Raises:
            NotFoundError: there is no such dead letter.
            SomaError: it failed again.
        """
        ...
