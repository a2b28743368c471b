"""Recording what is done to plain files, by whatever code: Python, Arrow, safetensors.

Python's audit events (https://docs.python.org/3/library/audit_events.html) announce each opening,
and what renames, removes and syncs is wrapped, so that no other thread looks between the deed and
its note. At each of them the directory is compared with what it was before: what changed in between
is an unsynced write. So nothing that writes has to be known, and nothing is taken for durable that
nobody synced.
"""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.powercut.recorder import ROOT, Recorder

_Name = str | os.PathLike[str]


class FileWatch:
    """Tells `recorder`, which may be changed meanwhile. It stays until the process ends."""

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._known: dict[int, bytes] = {}
        self._busy = threading.local()
        self._fsync = os.fsync
        os.fsync = self._synced
        os.rename, os.replace = self._renaming(os.rename), self._renaming(os.replace)
        os.remove, os.unlink = self._removing(os.remove), self._removing(os.unlink)
        os.rmdir = self._removing(os.rmdir)
        sys.addaudithook(self._heard)

    def attach(self, recorder: Recorder | None) -> None:
        """Go on with another recording, or with none."""
        if self._recorder is not None:
            self._look(self._recorder)
        self._known.clear()
        self._recorder = recorder

    # --- what happens ----------------------------------------------------------------------

    def _synced(self, handle: int) -> None:
        self._fsync(handle)
        recorder = self._recorder
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if recorder is None or not (path == recorder.root or recorder.covers(path)):
            return
        self._look(recorder)
        with recorder.lock:
            inode = recorder.inode(path)
            if inode is None:
                raise LookupError(f"{path} was synced without being seen")
            if recorder.is_directory(inode):
                recorder.sync_directory(path)
            else:
                recorder.sync(inode)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        recorder = self._recorder
        if recorder is None or getattr(self._busy, "now", False) or event != "open":
            return
        path = arguments[0]
        if isinstance(path, str) and recorder.covers(path):
            self._look(recorder)

    def _renaming(self, rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(
            old: _Name, new: _Name, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
        ) -> None:
            recorder, before = self._recorder, _path(old, src_dir_fd)
            if recorder is None or not recorder.covers(before):
                rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
                return
            with recorder.lock:
                self._look(recorder)
                rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
                recorder.rename(before, _path(new, dst_dir_fd))

        return renamed

    def _removing(self, remove: Callable[..., None]) -> Callable[..., None]:
        def removed(name: _Name, *, dir_fd: int | None = None) -> None:
            recorder, path = self._recorder, _path(name, dir_fd)
            if recorder is None or not recorder.covers(path):
                remove(name, dir_fd=dir_fd)
                return
            with recorder.lock:
                self._look(recorder)
                remove(name, dir_fd=dir_fd)
                recorder.unlink(path)

        return removed

    # --- what changed ----------------------------------------------------------------------

    def _look(self, recorder: Recorder) -> None:
        self._busy.now = True
        try:
            with recorder.lock:
                self._compare(recorder, recorder.root, ROOT)
        finally:
            self._busy.now = False

    def _compare(self, recorder: Recorder, directory: Path, inode: int) -> None:
        names = recorder.names(inode)
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            path, is_directory = Path(entry.path), entry.is_dir()
            child = names.get(entry.name)
            if child is None:
                child = recorder.create(path, is_directory=is_directory)
            if is_directory:
                self._compare(recorder, path, child)
            elif child not in recorder.seen_by_sqlite:
                self._compare_file(recorder, path, child)

    def _compare_file(self, recorder: Recorder, path: Path, inode: int) -> None:
        before, after = self._known.get(inode, b""), path.read_bytes()
        self._known[inode] = after
        if after.startswith(before):
            recorder.write(inode, len(before), after[len(before) :])
        else:  # whoever overwrites a file empties it first
            recorder.truncate(inode, 0)
            recorder.write(inode, 0, after)


def _path(name: _Name, directory: int | None) -> Path:
    """The absolute path of a name below a directory's descriptor, or below none."""
    if directory is None:
        return Path(name).absolute()
    return Path(f"/proc/self/fd/{directory}").readlink() / name
