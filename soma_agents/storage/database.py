"""One SQLite file: one process, one connection, whole transactions only."""

import asyncio
import os
import sqlite3
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from arbiters.errors import (
    CorruptError,
    SomaError,
    StorageFullError,
)
from soma_agents.storage.files import make_directory, room_for, sync_directory, sync_file
from soma_agents.storage.sqlite_files import (
    Schema,
    copying,
    refuse_foreign_wal,
    refuse_newer,
    translated,
    unknown,
)

T = TypeVar("T")
Row = tuple[Any, ...]
_Work = Callable[[sqlite3.Connection], T]
"""What the thread of a connection does in one go."""

# Transactions this task is in, over all databases. Each is an object of its own, so that a task
# which outlives the transaction it was started in does not believe itself to be inside another.
_entered: ContextVar[tuple[object, ...]] = ContextVar("_entered", default=())

_PRAGMAS = (
    # The lock is kept until the process ends: a second owner of the file is refused at once.
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    # What is deleted is overwritten: forgetting must not leave text in free pages.
    "PRAGMA secure_delete = ON",
)
_VERSIONS = "CREATE TABLE IF NOT EXISTS soma_schema (component TEXT PRIMARY KEY, version INTEGER)"


class Database:
    """A connection whose every write is a whole transaction, whatever is cancelled meanwhile.

    Stores that are called inside `transaction()` take part in it; outside, each statement is its
    own transaction. Cancellation never leaves a transaction open nor half of one committed.
    """

    def __init__(self, connection: aiosqlite.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection
        self._lock = asyncio.Lock()
        self._current: object | None = None
        self._due: list[_Work[object]] = []
        """What the next piece of work of the current transaction begins with."""
        self._doomed: SomaError | None = None

    # --- opening and closing ---------------------------------------------------------------

    @classmethod
    async def open(cls, path: Path, *schemas: Schema) -> "Database":
        """Open or create the file and bring each component's tables up to date.

        Raises:
            ConflictError: another process has the file open.
            CorruptError: the file is not a database, or a damaged one, or beside it lies a
                write-ahead log that is not its own.
            SomaError: the file was written by a newer SOMA.
            StorageFullError: there is no room to begin.
        """
        await asyncio.to_thread(_create, path)
        await asyncio.to_thread(refuse_foreign_wal, path)
        connection = aiosqlite.connect(path, isolation_level=None, timeout=0)
        # A process that fails before it closes its files must still be able to end.
        connection._thread.daemon = True  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        database = cls(await connection, path)
        try:
            for pragma in _PRAGMAS:
                await database._statement(pragma)
            await database._migrate(schemas)
        except BaseException:
            await connection.close()
            raise
        return database

    async def close(self) -> None:
        """Wait for the transaction under way, then close the file."""
        async with self._lock:
            await _settled(self._close())

    async def _close(self) -> None:
        if self._doomed is None:
            # A file that needs no log says so in its header: one found later is not its own.
            with suppress(sqlite3.Error):  # it is recovered when it is opened again
                await self._connection.execute_fetchall("PRAGMA journal_mode = DELETE")
        await self._connection.close()

    async def _migrate(self, schemas: Sequence[Schema]) -> None:
        await self._statement(_VERSIONS)
        found = dict(await self.rows("SELECT component, version FROM soma_schema"))
        refuse_newer(found, schemas, str(self.path))
        for schema in schemas:
            for version in range(found.get(schema.component, 0), len(schema.migrations)):
                await self._upgrade(schema, version)

    async def _upgrade(self, schema: Schema, version: int) -> None:
        done = f"INSERT OR REPLACE INTO soma_schema VALUES ('{schema.component}', {version + 1})"
        script = f"BEGIN IMMEDIATE; {schema.migrations[version]}; {done}; COMMIT;"
        await _settled(self._run(lambda connection: connection.executescript(script)))

    # --- writing ---------------------------------------------------------------------------

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """All that this task writes inside is committed, or, after any exception, none of it.

        Inside another transaction of the same task it is a part that can fail alone.
        """
        if self._inside():
            async with self._part():
                yield
            return
        async with self._lock:
            self._check_writable()
            outer = _entered.get()
            self._current = object()
            _entered.set((*outer, self._current))
            self._due = [_begin]
            try:
                yield
                if self._due != [_begin]:
                    await _settled(self._statement("COMMIT"))
            except BaseException:
                self._due = []
                # Does nothing when there is no transaction; statements still queued come first.
                await _settled(self._connection.rollback())
                raise
            finally:
                self._current = None
                _entered.set(outer)
                if isinstance(self._doomed, StorageFullError):
                    self._doomed = None

    @asynccontextmanager
    async def _part(self) -> AsyncGenerator[None]:
        await _settled(self._statement("SAVEPOINT part"))
        try:
            yield
        except BaseException:
            self._due = []  # what was there before went with the savepoint
            if self._connection.in_transaction:
                await _settled(self._statement("ROLLBACK TO part"))
                await _settled(self._statement("RELEASE part"))
            raise
        await _settled(self._statement("RELEASE part"))

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement and return the number of rows it changed."""
        async with self._turn():
            self._check_writable()
            return await self._run(lambda connection: connection.execute(sql, parameters).rowcount)

    async def defer(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """`execute_many` that waits, inside a transaction, for what comes next and goes with it.

        That is the commit at the latest, so what it fails with may be raised there.
        """
        if not self._inside():
            await self.execute_many(sql, rows)
            return
        self._check_writable()
        self._due.append(lambda connection: connection.executemany(sql, rows))

    async def change(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run one writing statement and return the rows of its RETURNING clause."""
        async with self._turn():
            self._check_writable()
            return await self._run(_fetching(sql, parameters))

    async def change_soon(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """`change` that is durable only with what is written next, unless in a transaction.

        The death of the process does not take it back; a power cut may.
        """
        if self._inside():
            return await self.change(sql, parameters)
        async with self._lock:
            self._check_writable()
            return await _settled(self._run(_unsynced(_fetching(sql, parameters))))

    async def execute_many(self, sql: str, parameters: Iterable[Sequence[Any]]) -> int:
        """Run one statement for each of the rows, in one transaction."""
        async with self.transaction():
            self._check_writable()
            return await self._run(lambda found: found.executemany(sql, parameters).rowcount)

    # --- reading ---------------------------------------------------------------------------

    async def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Every row of a query."""
        async with self._turn():
            return await self._run(_fetching(sql, parameters))

    async def row(self, sql: str, parameters: Sequence[Any] = ()) -> Row | None:
        """The first row of a query."""
        found = await self.rows(sql, parameters)
        return found[0] if found else None

    async def checkpoint(self) -> None:
        """Empty the write-ahead log into the file, so that nothing erased is left in it."""
        await self.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        # SQLite does not sync the emptied log: after a power cut the erased would be back in it.
        # SQLite's locks are on the file itself, so closing this descriptor drops none of them.
        try:
            await asyncio.to_thread(sync_file, self.path.with_name(f"{self.path.name}-wal"))
        except OSError as error:
            self._doomed = unknown(error, self.path)
            raise self._doomed from error

    async def copy(self, target: Path) -> None:
        """Write all that is committed into a new file, durably. Everybody else waits meanwhile.

        Raises:
            ConflictError: the file is there already.
            CorruptError: a page cannot be read.
            StorageFullError: there is no room for the copy.
        """
        async with self._lock:
            await _settled(self._copy(target))

    async def _copy(self, target: Path) -> None:
        with copying(self.path, target) as copy:
            await self._connection.backup(copy)

    async def check(self) -> None:
        """Look at every page.

        Raises:
            CorruptError: names the file and SQLite's first finding.
        """
        (finding,) = (await self.rows("PRAGMA integrity_check(1)"))[0]
        if finding != "ok":
            raise CorruptError(f"{self.path} is damaged: {finding}; restore it from a backup")

    # --- one statement ---------------------------------------------------------------------

    def _inside(self) -> bool:
        return self._current is not None and self._current in _entered.get()

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        """Inside a transaction go ahead; outside wait until nobody is in one."""
        if self._inside():
            yield
        else:
            async with self._lock:
                yield

    async def _statement(self, sql: str) -> None:
        await self._run(_fetching(sql))

    async def _run(self, work: _Work[T]) -> T:
        """Have the connection's thread do a piece of work. The way there and back costs: go seldom.

        What is due in a transaction goes with it.
        """
        if self._current is not None and self._due:
            due, self._due = self._due, []
            work = _after(due, work)
        try:
            thread: Any = self._connection  # its way in for any work bears an underscore
            return await thread._execute(work, thread._conn)  # noqa: SLF001
        except sqlite3.Error as error:
            ours = translated(error, self.path)
            if isinstance(ours, SomaError) and not (
                isinstance(ours, StorageFullError) and self._current is None
            ):
                self._doomed = ours
            raise ours from error

    def _check_writable(self) -> None:
        """SQLite may have rolled back by itself, so that nothing more may be written inside.

        After a failed write or fsync nobody knows what is on the disk: that stays so until the
        file is opened anew. Only from a full disk is there a way back.
        """
        if self._doomed is not None:
            raise self._doomed


def _fetching(sql: str, parameters: Sequence[Any] = ()) -> _Work[list[Row]]:
    return lambda connection: connection.execute(sql, parameters).fetchall()


def _begin(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")


def _after(due: Sequence[_Work[object]], work: _Work[T]) -> _Work[T]:
    def together(connection: sqlite3.Connection) -> T:
        for earlier in due:
            earlier(connection)
        return work(connection)

    return together


def _unsynced(work: _Work[T]) -> _Work[T]:
    def together(connection: sqlite3.Connection) -> T:
        connection.execute("PRAGMA synchronous = NORMAL")
        try:
            return work(connection)
        finally:
            connection.execute("PRAGMA synchronous = FULL")

    return together


def _create(path: Path) -> None:
    """Make the file for its owner only, with its name on disk."""
    with room_for(path):
        make_directory(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        sync_directory(path.parent)


async def _settled(work: Awaitable[T]) -> T:
    """Await `work` to its end even if cancelled; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()  # seen: whoever is cancelled does not learn of it
        raise cancelled
    return task.result()
