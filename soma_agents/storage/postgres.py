"""Connections to one PostgreSQL database, its durability checked and its errors translated."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

from arbiters.errors import (
    CorruptError,
    InvalidError,
    SomaError,
    StorageFullError,
    UnavailableError,
)
from soma_agents.storage.database import Row
from soma_agents.storage.sqlite_files import Schema, refuse_newer

_driver: Any = asyncpg  # ships no types
Connection = Any

_CONNECTIONS = 8
"""In the pool: the writer and as many readers as there are arbiters."""
_CONNECT_S = 5.0
_COMMAND_S = 60.0
_CLOSE_S = 10.0
_SESSION = {
    "application_name": "soma",
    # A process that is stopped inside a transaction must not hold up the others for ever.
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "20s",
}
_DURABLE = {
    "synchronous_commit": ("on", "remote_apply"),
    "fsync": ("on",),
    "full_page_writes": ("on",),
    "server_encoding": ("UTF8",),
}
_UPGRADING = 0x50_4D_41
"""Number of the advisory lock under which tables are brought up to date."""
_VERSIONS = (
    "CREATE TABLE IF NOT EXISTS soma_schema (component text PRIMARY KEY, version integer NOT NULL)"
)
_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class Server:
    """A pool of connections to one database. It mends itself when the server was away.

    Every method raises UnavailableError while the server is away and StorageFullError while
    its disk is full.
    """

    def __init__(self, url: str) -> None:
        self.place = place_of(url)
        self._url = url
        self._pool: Any = None

    # --- opening and closing ---------------------------------------------------------------

    @classmethod
    async def connect(cls, url: str) -> "Server":
        """Connect and look how durable a commit is; changes nothing.

        Raises:
            InvalidError: the database cannot be used, or would lose what it acknowledged.
        """
        server = cls(url)
        try:
            server._pool = await _driver.create_pool(
                url,
                min_size=1,
                max_size=_CONNECTIONS,
                init=server._check_durable,
                reset=_as_it_is,
                command_timeout=_COMMAND_S,
                timeout=_CONNECT_S,
                server_settings=_SESSION,
            )
        except (*_ERRORS, ValueError) as error:
            raise translated(error, server.place) from error
        return server

    @classmethod
    async def open(cls, url: str, schema: Schema) -> "Server":
        """Connect and bring the tables up to date.

        Raises:
            InvalidError: see `connect`.
            SomaError: the tables were made by a newer SOMA.
        """
        server = await cls.connect(url)
        try:
            await server.migrate(schema)
        except BaseException:
            await server.close()
            raise
        return server

    async def close(self) -> None:
        """Wait for the statements under way, then disconnect."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._pool.close()
        except (TimeoutError, *_ERRORS):
            self._pool.terminate()

    async def _check_durable(self, connection: Connection) -> None:
        for name, good in _DURABLE.items():
            found = await connection.fetchval("SELECT current_setting($1)", name)
            if found not in good:
                raise InvalidError(
                    f"{self.place}: {name} is {found!r}, the log needs {good[0]!r}; "
                    "set it so on the server, the database or the role"
                )

    async def migrate(self, schema: Schema) -> None:
        """Bring the tables up to date, one process at a time."""
        async with self.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _UPGRADING)
            await connection.execute(_VERSIONS)
            found = await self.versions(connection)
            refuse_newer(found, (schema,), self.place)
            for script in schema.migrations[found.get(schema.component, 0) :]:
                await connection.execute(script)
            await connection.execute(
                "INSERT INTO soma_schema VALUES ($1, $2)"
                " ON CONFLICT (component) DO UPDATE SET version = excluded.version",
                schema.component,
                len(schema.migrations),
            )

    @staticmethod
    async def versions(connection: Connection) -> dict[str, int]:
        """The version of each component; none where no log ever was."""
        if await connection.fetchval("SELECT to_regclass('soma_schema')") is None:
            return {}
        return dict(await connection.fetch("SELECT component, version FROM soma_schema"))

    # --- statements ------------------------------------------------------------------------

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A connection of one's own; each statement is its own transaction."""
        try:
            async with self._pool.acquire() as connection:
                yield connection
        except _ERRORS as error:
            raise translated(error, self.place) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """All that is done with the connection is committed, or, after any exception, nothing."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def rows(self, sql: str, *parameters: Any) -> list[Row]:
        """Every row of a query."""
        async with self.connection() as connection:
            return [tuple(row) for row in await connection.fetch(sql, *parameters)]

    async def value(self, sql: str, *parameters: Any) -> Any:
        """The first column of the first row."""
        async with self.connection() as connection:
            return await connection.fetchval(sql, *parameters)

    async def listener(self, channel: str, heard: Callable[..., Awaitable[None]]) -> Connection:
        """A connection that calls `heard` at every NOTIFY; the caller closes it."""
        try:
            connection: Connection = await _driver.connect(
                self._url, timeout=_CONNECT_S, server_settings=_SESSION
            )
            await connection.add_listener(channel, heard)
        except _ERRORS as error:
            raise translated(error, self.place) from error
        return connection


async def _as_it_is(_: Connection) -> None:
    """Sessions are never changed, and the pool rolls back by itself: saves a round trip."""


def place_of(url: str) -> str:
    """The server and the database of a URL, and nothing that opens them."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split('[?#]', rest)[0].rpartition('@')[2]}"


def translated(error: BaseException, place: str) -> SomaError:
    """An error of ours for one of asyncpg's, of the server's or of the network's."""
    # https://www.postgresql.org/docs/current/errcodes-appendix.html
    state = str(getattr(error, "sqlstate", None) or "")
    if state == "53100":
        return StorageFullError(f"no room left at {place}; free some disk space there")
    match state[:2]:
        case "XX" | "58":
            return CorruptError(f"{place}: {error}; look at the server's log, restore a backup")
        case "22" | "54":
            return InvalidError(f"{place} cannot store this: {error}; leave it out")
        case "23":
            return InvalidError(f"{place}: {error}; give it an id of its own")
        case "28" | "3D" | "3F" | "42" | "0A":
            return InvalidError(f"{place}: {error}; see the setting log.url and ~/.pgpass")
        case _ if isinstance(error, ValueError):
            return InvalidError(f"{place}: {error}; see the setting log.url")
        case _:
            reason = str(error) or type(error).__name__
            return UnavailableError(f"{place} is not there: {reason}; see that the server runs")
