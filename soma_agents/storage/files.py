"""Files that are there whole or not at all, and directories that prove their content."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from arbiters.errors import CorruptError, StorageFullError

MANIFEST = "manifest.json"
_CHUNK = 1 << 20


class _File(BaseModel):
    sha256: str
    bytes: int


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="allow")

    files: dict[str, _File]
    seal: str | None = None
    """See `seal_of`; manifests of the first release have none."""


def write_atomic(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace the file durably: a crash leaves the old content or the new one.

    Raises:
        StorageFullError: the disk is full; the old content stands.
    """
    partial = _partial(path)
    with room_for(path):
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the content of a file that somebody else wrote durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(directory: Path) -> None:
    """Make a directory, and those on the way to it, for its owner only and durably."""
    directory = directory.absolute()
    for path in (*reversed(directory.parents), directory):
        path.mkdir(exist_ok=True, mode=0o700)  # `parents=True` would open the ancestors to all
    # Somebody else may have made an ancestor just now. Where we may not write, nobody of us did.
    for ancestor in directory.parents:
        if not os.access(ancestor, os.R_OK | os.W_OK):
            break
        sync_directory(ancestor)


def put_in_place(partial: Path, target: Path) -> None:
    """Give a sealed directory its final name durably. A whole one with the same files stays."""
    if _same(partial, target):
        shutil.rmtree(partial)
        return
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    sync_directory(target.parent)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Seal a directory: make its files and their names durable, then write `manifest.json` over them, last.

    The manifest holds `facts` and `files`: name → `sha256` and `bytes`. A directory without a
    manifest is unfinished and counts as nothing.
    """
    files: dict[str, Any] = {}
    # A writer that was killed may have left the second.
    own = (directory / MANIFEST, _partial(directory / MANIFEST))
    with room_for(directory):
        for path in sorted(directory.rglob("*")):
            if path.is_dir():
                sync_directory(path)
            elif path.is_file() and path not in own:
                sync_file(path)
                name = path.relative_to(directory).as_posix()
                files[name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    manifest = {**facts, "files": files}
    sealed = manifest | {"seal": seal_of(manifest)}
    text = json.dumps(sealed, ensure_ascii=False, indent=1, sort_keys=True)
    write_atomic(directory / MANIFEST, text.encode() + b"\n")
    return manifest


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a sealed directory, its files unread.

    Raises:
        CorruptError: there is no manifest, or it cannot be read.
    """
    path = directory / MANIFEST
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes()).model_dump()
    except FileNotFoundError:
        raise CorruptError(f"{directory} has no {MANIFEST}: it was never finished") from None
    except (ValidationError, OSError) as error:
        raise CorruptError(f"{path} is not a manifest: {error}") from error
    seal = manifest.pop("seal")
    if seal not in (None, seal_of(manifest)):
        raise CorruptError(f"{path} is not what was written; restore it or make it anew")
    return manifest


def seal_of(value: Mapping[str, Any]) -> str:
    """What shows that a value read from JSON is the one that was written: its sha256 in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def verify_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a directory whose every file is what was written.

    Raises:
        CorruptError: names the first file that is missing or has changed.
    """
    manifest = read_manifest(directory)
    for name, entry in manifest["files"].items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise CorruptError(f"{directory / MANIFEST} names {name!r}, which lies outside")
        if not path.is_file():
            raise CorruptError(f"{path} is missing; restore {directory} or make it anew")
        found, expected = sha256_file(path), entry["sha256"]
        if found != expected:
            raise CorruptError(
                f"{path} is damaged: sha256 {found[:16]}…, written as {expected[:16]}…"
            )
    return manifest


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _same(partial: Path, target: Path) -> bool:
    try:
        return verify_manifest(target)["files"] == read_manifest(partial)["files"]
    except CorruptError:
        return False


@contextmanager
def room_for(path: Path) -> Generator[None]:
    """Say of a full disk that it is full.

    Raises:
        StorageFullError: instead of the system's error, naming `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"no room left to write {path}; free some disk space") from error
        raise
