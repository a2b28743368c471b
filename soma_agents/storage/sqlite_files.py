"""SQLite's files from outside: their errors in our words, their versions, foreign logs, copies."""

import os
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from arbiters.errors import (
    ConflictError,
    CorruptError,
    SomaError,
    StorageFullError,
    UnavailableError,
)
from soma_agents.storage.files import make_directory, room_for, sync_directory, sync_file

# What the file's header says of its journal: https://sqlite.org/fileformat2.html#file_format_version_numbers
_JOURNAL_BYTE, _NO_WAL = 18, 1


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one component of a file. Migration N leads from version N to N + 1.

    Migrations are SQL scripts that only ever get appended to.
    """

    component: str
    migrations: tuple[str, ...]


def translated(error: sqlite3.Error, path: Path) -> Exception:
    """An error of SQLite's in our words; one that speaks of a mistake of ours stays as it is."""
    if str(error).startswith("Could not decode"):  # raised by Python, so without a code
        return CorruptError(f"{path} is damaged: {error}; restore it from a backup")
    # The low byte is SQLite's primary result code: https://sqlite.org/rescode.html
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return StorageFullError(f"no room left to write {path}; free some disk space")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return CorruptError(f"{path} is damaged: {error}; restore it from a backup")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return ConflictError(f"{path} is in use by another process; stop that first")
        case sqlite3.SQLITE_IOERR:
            return unknown(error, path)
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY:
            return UnavailableError(f"{path} cannot be opened: {error}; see its rights")
        case _:
            return error


def unknown(error: Exception, path: Path) -> CorruptError:
    """A failed write or fsync: there is no way on over this file but to open it anew."""
    return CorruptError(f"{path}: {error}; nobody knows what reached the disk, restart SOMA")


def refuse_newer(found: Mapping[str, int], schemas: Sequence[Schema], place: str) -> None:
    """Compare the versions found in `place` with those that are known here.

    Raises:
        SomaError: one was written by a newer SOMA.
    """
    known = {schema.component: len(schema.migrations) for schema in schemas}
    for component, version in found.items():
        if version > known.get(component, 0):
            raise SomaError(
                f"{place} holds {component!r} in version {version}, this SOMA knows "
                f"version {known.get(component, 0)}; upgrade SOMA or restore an older backup"
            )


def refuse_foreign_wal(path: Path) -> None:
    """See that a file which was closed in order has no write-ahead log beside it.

    SQLite would play it into the file, whosever it is.

    Raises:
        CorruptError: there is one.
    """
    log = path.with_name(f"{path.name}-wal")
    # Whoever opens or closes the file just now has first the header changed, then the log made;
    # first the log removed, then the header changed.
    if _filled(log) and _header(path)[_JOURNAL_BYTE:][:1] == bytes([_NO_WAL]) and _filled(log):
        raise CorruptError(
            f"{log} does not belong to {path}, which was closed without one; "
            "move it elsewhere, then start SOMA again"
        )


def _filled(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_JOURNAL_BYTE + 1)


def copy_closed(source: Path, target: Path) -> None:
    """Copy a file that nobody has open; raises what `Database.copy` raises."""
    refuse_foreign_wal(source)
    with copying(source, target) as copy, closing(sqlite3.connect(source)) as original:
        original.backup(copy)


@contextmanager
def copying(source: Path, target: Path) -> Generator[sqlite3.Connection]:
    """A new database to copy into, for its owner only, and durable at the end.

    Raises:
        ConflictError: it is there already.
        CorruptError: the source is damaged.
        StorageFullError: there is no room for it.
    """
    with room_for(target):
        make_directory(target.parent)
        try:
            os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise ConflictError(f"{target} is there already; copy to another place") from None
        with closing(
            sqlite3.connect(target, isolation_level=None, check_same_thread=False)
        ) as copy:
            try:
                yield copy
                copy.execute("PRAGMA journal_mode = DELETE")
            except sqlite3.Error as error:
                ours = translated(error, target)
                raise (
                    translated(error, source) if isinstance(ours, CorruptError) else ours
                ) from error
        sync_file(target)
        sync_directory(target.parent)
