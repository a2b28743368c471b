"""`soma backup` and `soma restore`: a copy of a data directory that proves its content.

A backup is laid out like the data directory and sealed by a manifest, written last. Databases are
copied by whoever has them open: the arbiters' first, the log last; then files that are replaced at
once or never change, so that whatever the log names is there. Runs, logs and locks are not in it.
"""

import asyncio
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arbiters.errors import ConflictError, CorruptError, InvalidError
from soma_agents.app.doctor import Finding
from soma_agents.app.lock import HomeLock
from soma_agents.app.verify import verify
from soma_agents.runtime.assembly import ARBITERS
from soma_agents.runtime.snapshots import LOG, SNAPSHOTS, take_snapshot
from soma_agents.settings import Settings, load_settings
from soma_agents.storage.event_log import archive_of
from soma_agents.storage.files import (
    MANIFEST,
    make_directory,
    read_manifest,
    room_for,
    sync_directory,
    sync_file,
    verify_manifest,
    write_manifest,
)
from soma_agents.storage.identifiers import SystemClock
from soma_agents.storage.sqlite_files import copy_closed

FORMAT = 1
_FILES = ("soma.toml", "keys.json")
_SEALED = ("datasets", "models")
_CHUNK = 1 << 20

Snapshot = Callable[[], Path]
"""Asks a running SOMA for copies of its databases; returns where they are."""


@dataclass(frozen=True, slots=True)
class ClosedFiles:
    """Implements `Owners` for a SOMA that does not run: nobody has the databases open."""

    settings: Settings

    def owned(self) -> Sequence[str]:
        return [name for name in ARBITERS if self.settings.state_file(name).exists()]

    async def copy(self, owner: str, target: Path) -> None:
        file = self.settings.log_file if owner == LOG else self.settings.state_file(owner)
        if file.exists():
            copy_closed(file, target)


# --- looking and copying -------------------------------------------------------------------


@contextmanager
def databases(settings: Settings, snapshot: Snapshot) -> Iterator[Path]:
    """Where the databases can be read: in a snapshot if SOMA runs, else at home, locked."""
    if not settings.home.is_dir():
        raise InvalidError(f"there is no data directory {str(settings.home)!r}; see --home")
    try:
        lock = HomeLock(settings.home)
    except ConflictError:
        with _one_at_a_time(settings.home):
            yield snapshot()
        return
    try:
        yield settings.home
    finally:
        lock.release()


def back_up(settings: Settings, target: Path, snapshot: Snapshot) -> dict[str, Any]:
    """Make a backup and return its manifest without the list of files.

    Raises:
        ConflictError: the target is there already.
        CorruptError: what would be copied is damaged.
        StorageFullError: there is no room; nothing is left at the target.
    """
    if target.exists():
        raise ConflictError(f"{str(target)!r} is there already; a backup goes to a new directory")
    at = SystemClock().now()
    partial = target.with_name(f".{target.name}.partial")
    try:
        with room_for(target):
            shutil.rmtree(partial, ignore_errors=True)
            make_directory(partial)
            with databases(settings, snapshot) as found:
                if found == settings.home:
                    asyncio.run(take_snapshot(ClosedFiles(settings), settings, partial))
                else:
                    copy_tree(found, partial)
            left_out = _copy_files(settings, partial)
            copies = settings.model_copy(update={"home": partial})
            _refuse_damage(verify(copies, server=False), left_out)
            facts = {
                "format": FORMAT,
                "at": at.isoformat(),
                "log": "not in it; see pg_dump" if settings.log.url else "log/events.db",
                "left_out": left_out,
            }
            manifest = write_manifest(partial, facts)
            partial.rename(target)
            sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sizes = [entry["bytes"] for entry in manifest.pop("files").values()]
    return manifest | {"target": str(target), "files": len(sizes), "bytes": sum(sizes)}


def _copy_files(settings: Settings, partial: Path) -> list[str]:
    """Copy what is no database; the names of damaged directories, which stay behind."""
    for name in _FILES:
        if (settings.home / name).exists():
            copy_file(settings.home / name, partial / name)
    # After the log: what it says is archived is there.
    for segment in archive_of(settings.log_file).glob("[!.]*"):
        copy_file(segment, partial / segment.relative_to(settings.home))
    left_out: list[str] = []
    for kind in _SEALED:
        for path in sorted((settings.home / kind).glob("[!.]*")):
            try:
                verify_manifest(path)
            except CorruptError:
                left_out.append(f"{kind}/{path.name}")
            else:
                copy_tree(path, partial / kind / path.name)
    return left_out


def _refuse_damage(findings: Sequence[Finding], left_out: Sequence[str]) -> None:
    """What is copied must be worth restoring; what was left out is said elsewhere."""
    absent = {f"model {name.partition('/')[2]}" for name in left_out}
    for finding in findings:
        if not finding["ok"] and finding["check"] not in absent:
            raise CorruptError(
                f"no backup was made: {finding['check']}: {finding['found']}; {finding['way_out']}"
            )


@contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """Snapshots are large: each is gone before the next is asked for, whoever was interrupted."""
    with (home / "run" / "snapshots.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(home / SNAPSHOTS, ignore_errors=True)
        try:
            yield
        finally:
            shutil.rmtree(home / SNAPSHOTS, ignore_errors=True)


# --- restoring -----------------------------------------------------------------------------


def restore(backup: Path, home: Path) -> list[Finding]:
    """Make a data directory out of a backup and return what `soma verify` finds in it.

    Raises:
        ConflictError: `home` holds something.
        CorruptError: the backup was never finished, or is not what was written; nothing is
            left at `home`.
        StorageFullError: there is no room for it.
    """
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise ConflictError(
            f"{str(home)!r} is not empty; restore into a new directory, then use it with --home"
        )
    found = read_manifest(backup).get("format")
    if found != FORMAT:
        raise CorruptError(f"{backup} has backup format {found!r}, this SOMA reads {FORMAT}")
    verify_manifest(backup)
    partial = home.with_name(f".{home.name}.partial")
    try:
        with room_for(home):
            shutil.rmtree(partial, ignore_errors=True)
            copy_tree(backup, partial)
            (partial / MANIFEST).unlink()
            findings = verify(load_settings(partial, environ={}), server=False)
            _refuse_damage(findings, read_manifest(backup).get("left_out", []))
            for directory, _, names in os.walk(partial):
                for name in names:
                    sync_file(Path(directory) / name)
                sync_directory(Path(directory))
            partial.rename(home)
            sync_directory(home.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return findings


# --- files for their owner only ------------------------------------------------------------


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory; everything in the copy is its owner's alone."""
    make_directory(target)
    for path in sorted(source.rglob("*")):
        if path.is_dir():
            make_directory(target / path.relative_to(source))
        else:
            copy_file(path, target / path.relative_to(source))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content into a new file."""
    make_directory(target.parent)
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as copy, source.open("rb") as original:
        shutil.copyfileobj(original, copy, _CHUNK)
