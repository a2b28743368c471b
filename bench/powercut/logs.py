"""The event log, and an arbiter that keeps count beside it."""

import asyncio
import gzip
from pathlib import Path
from typing import ClassVar

from arbiters.envelope import Envelope
from arbiters.events import ConversationDeleted, Event, FactForgotten
from arbiters.kernel.arbiter import Arbiter, Said, on
from arbiters.kernel.host import Host
from arbiters.testing import FakeClock, SequentialIds, enveloped
from bench.powercut.promises import DamagedError, LostError, Notes, Noting, facts
from policies.retention import Retention
from soma_agents.storage.database import Database
from soma_agents.storage.event_log import SqliteEventLog
from soma_agents.storage.ledger import SqliteLedger
from soma_agents.storage.sqlite_files import Schema

LOG = "events.db"
STATE = "counting.db"
_CHECKPOINT_PAGES = 40
"""Pages in the write-ahead log before it starts over: few, so that it often does."""
_LONG = 9_000
"""Characters that need more than one page."""
_RETENTION = Retention(keep=6, segment=4)
"""Little stays, so that much is archived."""


async def _open_log(home: Path) -> tuple[SqliteEventLog, Database]:
    """The log as `SqliteEventLog.open` makes it, and the database inside."""
    database = await Database.open(home / LOG, SqliteEventLog.schema)
    await database.rows(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    return await SqliteEventLog.over(database, _RETENTION), database


def _event(name: str, event: Event) -> Envelope:
    return enveloped(event, id=name, idempotency=name)


# --- the log -------------------------------------------------------------------------------


class EventLogWorkload:
    """Single events, groups from several publishers at once, erasures, a restart."""

    name: ClassVar[str] = "event_log"

    async def live(self, home: Path, note: Noting) -> None:
        """See `Workload.live`."""
        for life in range(2):
            log, _ = await _open_log(home)
            note("opened")
            for day in range(3):
                await self._day(log, note, f"{life}.{day}")
            await log.close()

    async def _day(self, log: SqliteEventLog, note: Noting, day: str) -> None:
        for number in range(5):
            await self._append(log, note, [f"{day}.single{number}"])
            if number in {1, 2}:
                await self._erase(log, note, f"{day}.single{number}")
        async with asyncio.TaskGroup() as publishers:
            for who in range(5):
                group = [f"{day}.by{who}.{number}" for number in range(who % 3 + 1)]
                publishers.create_task(self._append(log, note, group))
        await self._erase(log, note, f"{day}.by2.0")

    async def _append(self, log: SqliteEventLog, note: Noting, names: list[str]) -> None:
        envelopes = [_event(name, FactForgotten(subject=_text(name))) for name in names]
        note("appending", names=names)
        offsets = await log.append(envelopes)
        note("appended", names=names, offsets=offsets)

    async def _erase(self, log: SqliteEventLog, note: Noting, name: str) -> None:
        note("erasing", name=name)
        await log.erase([name])
        note("erased", name=name)

    async def check(self, home: Path, notes: Notes) -> None:
        """See `Workload.check`."""
        self._nothing_erased_is_left(home, notes)
        log, database = await _open_log(home)
        try:
            await database.check()
            await log.verify()
            await self._groups_are_whole(log, notes)
            await self._goes_on(log)
        finally:
            await log.close()

    def _nothing_erased_is_left(self, home: Path, notes: Notes) -> None:
        """Not even in the bytes of the files."""
        files = [path.read_bytes() for path in home.iterdir() if path.is_file()]
        files += [gzip.decompress(path.read_bytes()) for path in home.glob("archive/0*")]
        for fact in facts(notes, "erased"):
            text = f"the words of {fact['name']}; ".encode()
            if any(text in content for content in files):
                raise LostError(f"the erasure of {fact['name']} was acknowledged and is undone")

    async def _groups_are_whole(self, log: SqliteEventLog, notes: Notes) -> None:
        rows = await log._stored("TRUE ORDER BY offset", ())  # noqa: SLF001 - erased ones too
        found = {row[1]: (row[0], row[-4]) for row in rows}
        erasing = {fact["name"] for fact in facts(notes, "erasing")}
        erased = {fact["name"] for fact in facts(notes, "erased")}
        for fact in facts(notes, "appended"):
            if [found.get(name, (0,))[0] for name in fact["names"]] != fact["offsets"]:
                raise LostError(f"{fact['names']} were acknowledged, not all are there")
        for fact in facts(notes, "appending"):
            there = [name for name in fact["names"] if name in found]
            if there and there != fact["names"]:
                raise DamagedError(f"of the group {fact['names']} only {there} is there")
            for name in there:
                payload = found.pop(name)[1]
                if payload is None and name not in erasing:
                    raise LostError(f"the payload of {name} is gone")
                if payload is not None and (_text(name) not in payload or name in erased):
                    raise DamagedError(f"the payload of {name} is {payload[:80]!r}")
        if found:
            raise DamagedError(f"nobody appended {sorted(found)}")

    async def _goes_on(self, log: SqliteEventLog) -> None:
        end = await log.end()
        offsets = await log.append([_event("after the cut", FactForgotten(subject=""))])
        if offsets != [end + 1] or await log.verify() != end + 1:
            raise DamagedError(f"after offset {end} came {offsets}")


def _text(name: str) -> str:
    words = f"the words of {name}; "
    return words * (_LONG // len(words)) if name.endswith("single2") else words


# --- an arbiter ----------------------------------------------------------------------------


class _Counts:
    """How often each event took effect."""

    schema: ClassVar[Schema] = Schema(
        "counts", ("CREATE TABLE counts (event TEXT PRIMARY KEY, times INTEGER NOT NULL) STRICT",)
    )

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, event: str) -> None:
        await self._database.execute(
            "INSERT INTO counts VALUES (?, 1) ON CONFLICT (event) DO UPDATE SET times = times + 1",
            (event,),
        )

    async def all(self) -> dict[str, int]:
        return dict(await self._database.rows("SELECT event, times FROM counts"))


class _Counting(Arbiter):
    """Counts each deletion and says so."""

    name = "counting"
    batch = 4

    def __init__(self, counts: _Counts) -> None:
        self._counts = counts

    @on(ConversationDeleted)
    async def count(self, _: ConversationDeleted, envelope: Envelope) -> Said:
        """Add one."""
        await self._counts.add(envelope.id)
        yield FactForgotten(subject=envelope.id)


class HostWorkload:
    """The kernel's host over the real log and ledger: every effect once, whatever is cut."""

    name: ClassVar[str] = "host"

    async def live(self, home: Path, note: Noting) -> None:
        """See `Workload.live`."""
        for life in range(2):
            log, _ = await _open_log(home)
            state, host = await self._host(home, log, f"life{life}")
            note("opened")
            for day in range(5):
                names = [f"{life}.{day}.{number}" for number in range(6)]
                await log.append(
                    [_event(name, ConversationDeleted(conversation=name)) for name in names]
                )
                note("published", names=names)
                await host.drain()
                note("handled", names=names)
            await state.close()
            await log.close()

    async def _host(self, home: Path, log: SqliteEventLog, life: str) -> tuple[Database, Host]:
        state = await Database.open(home / STATE, SqliteLedger.schema, _Counts.schema)
        host = Host(
            _Counting(_Counts(state)),
            log=log,
            ledger=SqliteLedger(state),
            clock=FakeClock(),
            ids=SequentialIds(life),
        )
        return state, host

    async def check(self, home: Path, notes: Notes) -> None:
        """See `Workload.check`."""
        log, database = await _open_log(home)
        state, host = await self._host(home, log, "after")
        try:
            await database.check()
            await state.check()
            await log.verify()
            await self._handled_is_kept(state, log, notes)
            await host.drain()
            await self._effects_are_once(state, log, notes)
        finally:
            await state.close()
            await log.close()

    async def _handled_is_kept(self, state: Database, log: SqliteEventLog, notes: Notes) -> None:
        counted = await _Counts(state).all()
        for fact in facts(notes, "handled"):
            if missing := [name for name in fact["names"] if name not in counted]:
                raise LostError(f"{missing} were handled, their effects are gone")
        cursor, end = await SqliteLedger(state).cursor(), await log.end()
        if cursor > end:
            raise DamagedError(f"the arbiter is at {cursor}, the log ends at {end}")

    async def _effects_are_once(self, state: Database, log: SqliteEventLog, notes: Notes) -> None:
        batch = await log.read(0, limit=10_000)
        heard = [e.id for e in batch.envelopes if e.type == "ConversationDeleted"]
        said = [e.payload["subject"] for e in batch.envelopes if e.type == "FactForgotten"]
        for fact in facts(notes, "published"):
            if missing := set(fact["names"]) - set(heard):
                raise LostError(f"{sorted(missing)} were published and are not in the log")
        if sorted(said) != sorted(heard):
            raise DamagedError(f"{sorted(heard)} were heard, said was {sorted(said)}")
        if await _Counts(state).all() != dict.fromkeys(heard, 1):
            raise DamagedError(f"{sorted(heard)} did not each take effect once")
        if await SqliteLedger(state).outbox():
            raise DamagedError("something is left in the outbox")
