"""What a workload is, and how it says that a promise was broken."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from bench.powercut.recorder import Note

Notes = Sequence[Note]
Noting = Callable[..., None]
"""`note(kind, **facts)`: remember at this place of the recording."""


class LostError(AssertionError):
    """Something that was acknowledged is not there."""


class DamagedError(AssertionError):
    """Something is there that was never whole, or never written."""


class Workload(Protocol):
    """Real code at work below a directory, and what must hold after a cut."""

    name: ClassVar[str]

    async def live(self, home: Path, note: Noting) -> None:
        """Work, noting what was acknowledged as soon as it was."""
        ...

    async def check(self, home: Path, notes: Notes) -> None:
        """Look at what a cut left; `notes` are those from before it.

        Raises:
            LostError: a promise was broken.
            DamagedError: the same.
        """
        ...


def facts(notes: Notes, kind: str) -> list[dict[str, Any]]:
    """The facts of every note of a kind, in order."""
    return [note.facts for note in notes if note.kind == kind]
