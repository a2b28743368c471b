"""Subscribers on real SQLite that die and stumble where they are told to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from arbiters.envelope import Envelope
from arbiters.events import ConversationDeleted, FactForgotten
from arbiters.kernel.arbiter import Arbiter, Said, on
from arbiters.kernel.host import Host
from arbiters.ports import Clock, EventLog, Ids
from soma_agents.storage.database import Database
from soma_agents.storage.ledger import SqliteLedger
from soma_agents.storage.sqlite_files import Schema

Place = Literal["handler", "commit", "outbox", "appended", "sent"]
PLACES: tuple[Place, ...] = ("handler", "commit", "outbox", "appended", "sent")
"""Where a subscriber may die: in its handler, before its commit, before what it says is in the
log, before that is known, after it is known."""


class DeathError(BaseException):
    """The process is gone: nothing after this runs, and nobody may catch it."""


@dataclass(slots=True)
class Fate:
    """What is to happen to a subscriber: where it dies next, what it cannot hear."""

    dies: Place | None = None
    poison: set[str] = field(default_factory=set[str])
    first: str = ""
    """The event whose attempt is counted: the first of a batch, none of a replay."""
    tries: Counter[str] = field(default_factory=Counter[str])
    """How often the handler was run for an event whose attempt was counted."""

    def pass_by(self, place: Place) -> None:
        """Die here, once, if that is where."""
        if self.dies == place:
            self.dies = None
            raise DeathError(place)


class FragileLedger(SqliteLedger):
    """A ledger whose owner may die at each of its steps."""

    def __init__(self, database: Database, fate: Fate) -> None:
        super().__init__(database)
        self._fate = fate

    async def advance(self, offset: int, said: Sequence[Envelope]) -> None:
        """Die in the transaction, with all written and nothing committed."""
        await super().advance(offset, said)
        self._fate.pass_by("commit")

    async def outbox(self) -> list[Envelope]:
        """Die with something to say."""
        waiting = await super().outbox()
        if waiting:
            self._fate.pass_by("outbox")
        return waiting

    async def sent(self, envelopes: Sequence[Envelope]) -> None:
        """Die before that is known, or after."""
        self._fate.pass_by("appended")
        await super().sent(envelopes)
        self._fate.pass_by("sent")


class WatchedHost(Host):
    """A host that says whose attempt it has counted."""

    def __init__(self, fate: Fate, arbiter: Arbiter, **parts: Any) -> None:
        super().__init__(arbiter, **parts)
        self._fate = fate

    async def _commit(self, envelopes: Sequence[Envelope], *, dug_up: bool = False) -> None:
        self._fate.first = "" if dug_up else envelopes[0].id
        await super()._commit(envelopes, dug_up=dug_up)


EFFECTS = Schema(
    "effects",
    ("CREATE TABLE effects (place INTEGER PRIMARY KEY, event TEXT NOT NULL) STRICT;",),
)


class _Subscriber(Arbiter):
    """Writes down what it hears, every time; a second row would be a second effect."""

    batch = 3

    def __init__(self, database: Database, fate: Fate) -> None:
        self._database = database
        self._fate = fate

    async def _note(self, envelope: Envelope) -> None:
        await self._database.execute("INSERT INTO effects (event) VALUES (?)", (envelope.id,))
        self._fate.tries[envelope.id] += envelope.id == self._fate.first
        self._fate.pass_by("handler")
        if envelope.id in self._fate.poison:
            raise ValueError(f"{self.name} cannot hear {envelope.id}")


class Teller(_Subscriber):
    """Says one thing about each thing it hears."""

    name = "teller"

    @on(ConversationDeleted)
    async def tell(self, _: ConversationDeleted, envelope: Envelope) -> Said:
        """Note it and pass it on."""
        await self._note(envelope)
        yield FactForgotten(subject=envelope.id)


class Listener(_Subscriber):
    """Hears what everybody says."""

    name = "listener"

    @on(ConversationDeleted, FactForgotten)
    async def listen(self, _: ConversationDeleted | FactForgotten, envelope: Envelope) -> None:
        """Note it."""
        await self._note(envelope)


@dataclass(slots=True)
class Subscriber:
    """A subscriber's file, and the host that lives on it at present."""

    kind: type[_Subscriber]
    path: Path
    fate: Fate
    database: Database
    host: Host

    @classmethod
    async def born(
        cls, kind: type[_Subscriber], home: Path, log: EventLog, clock: Clock, ids: Ids
    ) -> "Subscriber":
        """Open its file."""
        path, fate = home / f"{kind.name}.db", Fate()
        database = await Database.open(path, SqliteLedger.schema, EFFECTS)
        host = _host(kind, database, fate, log=log, clock=clock, ids=ids)
        return cls(kind, path, fate, database, host)

    async def live(self, log: EventLog, clock: Clock, ids: Ids, *, reopened: bool) -> None:
        """Begin anew; with its file opened again, as a new process does."""
        if reopened:
            await self.database.close()
            self.database = await Database.open(self.path, SqliteLedger.schema, EFFECTS)
        self.host = _host(self.kind, self.database, self.fate, log=log, clock=clock, ids=ids)

    async def effects(self) -> list[str]:
        """Ids of what was heard, in order."""
        rows = await self.database.rows("SELECT event FROM effects ORDER BY place")
        return [event for (event,) in rows]


def _host(
    kind: type[_Subscriber],
    database: Database,
    fate: Fate,
    *,
    log: EventLog,
    clock: Clock,
    ids: Ids,
) -> Host:
    ledger = FragileLedger(database, fate)
    return WatchedHost(fate, kind(database, fate), log=log, ledger=ledger, clock=clock, ids=ids)
