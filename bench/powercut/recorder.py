"""What a program did to the files below one directory, effect by effect, in order.

Files and directories are known by a number that stays when they are renamed, as inodes are.
"""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = 0
"""The number of the directory that everything is recorded below."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes handed to the operating system."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file cut, or stretched with zeros, to a size."""

    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """An fsync of a file that has returned."""

    inode: int


@dataclass(frozen=True, slots=True)
class Create:
    """A new name in a directory, of an empty file or directory."""

    directory: int
    name: str
    inode: int
    is_directory: bool


@dataclass(frozen=True, slots=True)
class Unlink:
    """A name taken out of a directory."""

    directory: int
    name: str


@dataclass(frozen=True, slots=True)
class Rename:
    """A name that became another one in the same directory."""

    directory: int
    old: str
    new: str
    inode: int


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """An fsync of a directory that has returned."""

    directory: int


@dataclass(frozen=True, slots=True)
class Note:
    """Not an effect: what the workload was told, or was about to do, at this place."""

    kind: str
    facts: dict[str, Any] = field(default_factory=dict[str, Any])


Effect = Write | Truncate | Sync | Create | Unlink | Rename | SyncDirectory | Note


class Recorder:
    """The effects so far, and the tree of names as the program sees it.

    Hold `lock` from before an effect until it is noted, so that two threads cannot swap places.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.effects: list[Effect] = []
        self.lock = threading.RLock()
        self.seen_by_sqlite: set[int] = set()
        self._entries: dict[int, dict[str, int]] = {ROOT: {}}
        self._last = ROOT

    def note(self, kind: str, **facts: Any) -> None:
        """Remember at this place what was acknowledged."""
        self.effects.append(Note(kind, facts))

    # --- names -----------------------------------------------------------------------------

    def covers(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path lies below the root."""
        return os.fspath(path).startswith(f"{self.root}{os.sep}")

    def inode(self, path: Path) -> int | None:
        """The number behind a path."""
        inode = ROOT
        for name in path.relative_to(self.root).parts:
            found = self._entries.get(inode, {}).get(name)
            if found is None:
                return None
            inode = found
        return inode

    def names(self, directory: int) -> dict[str, int]:
        """The names in a directory."""
        return self._entries[directory]

    def is_directory(self, inode: int) -> bool:
        """Whether a number is that of a directory."""
        return inode in self._entries

    def _parent(self, path: Path) -> int:
        directory = self.inode(path.parent)
        if directory is None:
            raise LookupError(f"{path.parent} was made without being seen")
        return directory

    # --- effects on directories ------------------------------------------------------------

    def create(self, path: Path, *, is_directory: bool = False) -> int:
        """Note a new file or directory and return its number."""
        self._last += 1
        directory = self._parent(path)
        self._entries[directory][path.name] = self._last
        if is_directory:
            self._entries[self._last] = {}
        self.effects.append(Create(directory, path.name, self._last, is_directory))
        return self._last

    def unlink(self, path: Path) -> None:
        """Note that a file or an empty directory goes."""
        directory = self._parent(path)
        del self._entries[directory][path.name]
        self.effects.append(Unlink(directory, path.name))

    def rename(self, old: Path, new: Path) -> None:
        """Note that something gets another name.

        Raises:
            NotImplementedError: it moves to another directory, which SOMA never does.
        """
        directory = self._parent(old)
        if directory != self._parent(new):
            raise NotImplementedError(f"{old} moves to another directory, {new.parent}")
        inode = self._entries[directory].pop(old.name)
        self._entries[directory][new.name] = inode
        self.effects.append(Rename(directory, old.name, new.name, inode))

    def sync_directory(self, path: Path) -> None:
        """Note that a directory's names are durable now."""
        directory = self.inode(path)
        if directory is not None:
            self.effects.append(SyncDirectory(directory))

    # --- effects on files ------------------------------------------------------------------

    def write(self, inode: int, offset: int, data: bytes) -> None:
        """Note bytes that were written."""
        if data:
            self.effects.append(Write(inode, offset, data))

    def truncate(self, inode: int, size: int) -> None:
        """Note a new size."""
        self.effects.append(Truncate(inode, size))

    def sync(self, inode: int) -> None:
        """Note that a file's content is durable now."""
        self.effects.append(Sync(inode))
