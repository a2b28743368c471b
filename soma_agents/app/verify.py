"""`soma verify`: whether everything that was kept is what was written, each finding with a way out.

Databases are looked at where nobody has them open: in the data directory of a SOMA that is
stopped, in a snapshot of one that runs.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from arbiters.errors import CorruptError, InvalidError, SomaError
from soma_agents.app.doctor import Finding
from soma_agents.language.source import base_id, locate
from soma_agents.runtime.assembly import ARBITERS, schemas_of
from soma_agents.settings import Settings
from soma_agents.storage.archive import Archive
from soma_agents.storage.chain import ALL_COLUMNS, holds
from soma_agents.storage.datasets import verify_dataset
from soma_agents.storage.event_log import ARCHIVED_COLUMNS, SqliteEventLog, archive_of
from soma_agents.storage.files import verify_manifest
from soma_agents.storage.identifiers import SystemClock
from soma_agents.storage.keys import ApiKeys
from soma_agents.storage.sqlite_files import Schema, refuse_foreign_wal, refuse_newer, translated

_REBUILT = "move it elsewhere and it is made anew from the event log"
_IN_USE = "SELECT id FROM models WHERE path <> '' AND stage IN ('champion', 'retired', 'held')"
_SPECIALISTS = "SELECT model FROM specialists WHERE NOT retired"


def verify(
    settings: Settings, databases: Path | None = None, *, server: bool = True
) -> list[Finding]:
    """Read everything, to the last byte; changes nothing.

    Args:
        settings: whose data directory it is.
        databases: a snapshot to find the databases in, instead of the data directory.
        server: whether to look at a log on a server, too.
    """
    copies = _at(settings, databases or settings.home)
    end, findings = _log(copies, archive_of(settings.log_file), server=server)
    for arbiter in ARBITERS:
        findings += _arbiter(copies, arbiter, end)
    findings += _models(settings, copies)
    findings += [
        _found(f"dataset {path.name}", lambda path=path: _dataset(path), "")
        for path in _sealed(settings.home / "datasets")
    ]
    findings.append(_found("keys", lambda: _keys(settings), "restore it, or make keys anew"))
    return findings


def look(settings: Settings) -> None:
    """What can be seen at once of the databases of a SOMA that does not run yet.

    Raises:
        CorruptError: one is damaged, has a log that is not its own, or is ahead of the event log.
        InvalidError: what was learnt belongs to another model than `engine.model`.
        SomaError: one is of a newer SOMA.
    """
    end = _newest(settings.log_file) if settings.log_file.exists() else 0
    for arbiter in ARBITERS:
        file = settings.state_file(arbiter)
        if file.exists():
            with _reading(file, *schemas_of(arbiter)) as database:
                if not settings.log.url:
                    _not_ahead(settings, file, _cursor(database), end)
                if _has(database, "models"):
                    _same_base(settings, database)
    ApiKeys(settings.keys_file, SystemClock()).list()


# --- databases -----------------------------------------------------------------------------


def _log(settings: Settings, archive: Path, *, server: bool) -> tuple[int | None, list[Finding]]:
    """The offset of the newest event, where there is a log, and what was found."""
    if settings.log.url:
        examine = [_found("event log", lambda: _server(settings.log.url), "")] if server else []
        return None, examine
    file = settings.log_file
    if not file.exists():
        return 0, []
    finding = _found("event log", lambda: _chain(file, archive), "restore it from a backup")
    return (_newest(file) if finding["ok"] else None), [finding]


def _chain(file: Path, archive: Path) -> str:
    """Every page, then every link."""
    segments = Archive(archive)
    with _reading(file, SqliteEventLog.schema) as database:
        _whole(database, file)
        last_hash, offset = b"", 0
        for stored in database.execute(f"SELECT {_columns(database)} FROM events ORDER BY offset"):
            (row,) = segments.restored([stored])
            if row[0] != offset + 1 or not holds(row, last_hash):
                raise CorruptError(f"{file}: the chain of hashes breaks at offset {offset + 1}")
            last_hash, offset = row[-1], row[0]
    return f"{offset} events, chained"


def _columns(database: sqlite3.Connection) -> str:
    """The log of an older release knows no archive."""
    names = {row[1] for row in database.execute("PRAGMA table_info(events)")}
    return ARCHIVED_COLUMNS if "segment" in names else f"{ALL_COLUMNS}, NULL"


def _server(url: str) -> str:
    from soma_agents.storage.postgres_log import PostgresEventLog

    async def count() -> int:
        log = await PostgresEventLog.open(url)
        try:
            return await log.verify()
        finally:
            await log.close()

    return f"{asyncio.run(count())} events, chained"


def _newest(file: Path) -> int:
    with _reading(file, SqliteEventLog.schema) as database:
        newest = "SELECT coalesce(max(offset), 0) FROM events"
        return int(database.execute(newest).fetchone()[0]) if _has(database, "events") else 0


def _arbiter(settings: Settings, arbiter: str, end: int | None) -> list[Finding]:
    file = settings.state_file(arbiter)
    if not file.exists():
        return []

    def examine() -> str:
        with _reading(file, *schemas_of(arbiter)) as database:
            _whole(database, file)
            cursor = _cursor(database)
        if end is not None:
            _not_ahead(settings, file, cursor, end)
        return f"has handled the log up to {cursor}"

    return [_found(f"database {arbiter}", examine, _REBUILT)]


def _not_ahead(settings: Settings, file: Path, cursor: int, end: int) -> None:
    if cursor > end:
        raise CorruptError(
            f"{settings.log_file} ends at offset {end}, {file} has handled it up to {cursor}: "
            "the log lost its end; restore it from a backup"
        )


def _cursor(database: sqlite3.Connection) -> int:
    offset = "SELECT offset FROM cursor"
    return int(database.execute(offset).fetchone()[0]) if _has(database, "cursor") else 0


def _has(database: sqlite3.Connection, table: str) -> bool:
    named = database.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,))
    return named.fetchone() is not None


def _same_base(settings: Settings, registry: sqlite3.Connection) -> None:
    source = settings.engine.model
    first = registry.execute("SELECT id FROM models WHERE number = 0").fetchone()
    if first is not None and (found := base_id(locate(source))) != first[0]:
        raise InvalidError(
            f"engine.model = {source!r} is {found}, but what {settings.home} holds was learnt over "
            f"{first[0]}; set engine.model back and let this model answer beside it (`soma models "
            "add FILE --specialist NAME`), or begin another data directory with --home; if nobody "
            "changed it, restore a backup"
        )


def _whole(database: sqlite3.Connection, file: Path) -> None:
    """Every page and index, and every cell as what it claims to be."""
    (finding,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if finding != "ok":
        raise CorruptError(f"{file} is damaged: {finding}")
    tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%STRICT'"
    for (table,) in database.execute(tables).fetchall():
        for _ in database.execute(f"SELECT * FROM {table}"):
            pass


@contextmanager
def _reading(file: Path, *schemas: Schema) -> Iterator[sqlite3.Connection]:
    """A database that nobody has open, unless it is of a newer SOMA."""
    refuse_foreign_wal(file)
    try:
        with closing(sqlite3.connect(file)) as database:
            versions = "SELECT 1 FROM sqlite_schema WHERE name = 'soma_schema'"
            if database.execute(versions).fetchall():
                found = dict(database.execute("SELECT component, version FROM soma_schema"))
                refuse_newer(found, schemas, str(file))
            yield database
    except sqlite3.Error as error:
        raise translated(error, file) from error


# --- files ---------------------------------------------------------------------------------


def _models(settings: Settings, copies: Settings) -> list[Finding]:
    """Every sealed model, and whether those that may answer are there."""
    models = settings.home / "models"
    findings = [
        _found(f"model {path.name}", lambda path=path: _model(path), "train it again")
        for path in _sealed(models)
    ]
    registry = copies.state_file("evaluation")
    try:
        with _reading(registry, *schemas_of("evaluation")) as database:
            names = [name for (name,) in database.execute(_IN_USE)]
            if _has(database, "specialists"):
                names += [name for (name,) in database.execute(_SPECIALISTS)]
    except (SomaError, sqlite3.Error):
        return findings  # said of the database already
    missing = [name for name in names if not (models / name).is_dir()]
    return findings + [
        Finding(
            check=f"model {name}",
            ok=False,
            found=f"{models / name} is missing",
            way_out="restore it from a backup, or promote another",
        )
        for name in missing
    ]


def _model(path: Path) -> str:
    return _named(path, verify_manifest(path).get("model"))


def _dataset(path: Path) -> str:
    return _named(path, verify_dataset(path).get("id"))


def _named(path: Path, identity: object) -> str:
    if identity not in (None, path.name):
        raise CorruptError(f"{path} holds {identity!r}: it was put under another's name")
    return "as its manifest says"


def _sealed(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("[!.]*") if path.is_dir())


def _keys(settings: Settings) -> str:
    file = settings.keys_file
    if not file.exists() and file.with_name(f".{file.name}.lock").exists():
        raise CorruptError(f"{file} is missing although keys were made: SOMA is open on loopback")
    return f"{len(ApiKeys(file, SystemClock()).list())} keys"


# --- findings ------------------------------------------------------------------------------


def _found(check: str, examine: Callable[[], str], way_out: str) -> Finding:
    """What an examination told, or what it failed with and the way out of that."""
    try:
        return Finding(check=check, ok=True, found=examine(), way_out="")
    except (SomaError, OSError) as error:
        return Finding(check=check, ok=False, found=str(error), way_out=way_out or "see there")


def _at(settings: Settings, home: Path) -> Settings:
    return settings.model_copy(update={"home": home})
