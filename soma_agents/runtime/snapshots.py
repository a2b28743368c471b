"""Copies of the databases of a running SOMA, each made by the one process that has it open."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from soma_agents.settings import Settings

LOG = "log"
"""The owner of the event log."""
SNAPSHOTS = "run/snapshots"
"""Where below the data directory a running SOMA puts copies; whoever asked for one removes it."""


class Owners(Protocol):
    """Those who have the databases open, wherever they run."""

    def owned(self) -> Sequence[str]:
        """The arbiters whose databases can be copied."""
        ...

    async def copy(self, owner: str, target: Path) -> None:
        """Have an arbiter, or `LOG`, copy its database into a new file, durably.

        Raises:
            CorruptError: the database is damaged.
            StorageFullError: there is no room for the copy.
            UnavailableError: the owner is not there now.
        """
        ...


async def take_snapshot(owners: Owners, settings: Settings, directory: Path) -> None:
    """Copy every database into a directory that is laid out like a data directory.

    The log comes last: then no arbiter's cursor lies beyond it. What an arbiter said or heard
    between the two copies it says or hears again, under the same keys. A log on a server is left
    to the server's tools.

    Raises:
        SomaError: whatever a copy raises.
    """
    copies = settings.model_copy(update={"home": directory})
    for arbiter in owners.owned():
        await owners.copy(arbiter, copies.state_file(arbiter))
    if not settings.log.url:
        await owners.copy(LOG, copies.log_file)
