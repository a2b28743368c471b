"""Recording what is done to plain files, by whatever code: Python, Arrow, safetensors.

Python's audit events (https://docs.python.org/3/library/audit_events.html) announce each opening,
renaming and removal, and `os.fsync` is wrapped. At each of them the directory is compared with
what it was before: what changed in between is an unsynced write. So nothing that writes has to be
known, and nothing is taken for durable that nobody synced.
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any

from bench.powercut.recorder import ROOT, Recorder


class FileWatch:
    """Tells `recorder`, which may be changed meanwhile. It stays until the process ends."""

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._known: dict[int, bytes] = {}
        self._busy = threading.local()
        self._fsync = os.fsync
        os.fsync = self._synced
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
        if recorder is None or getattr(self._busy, "now", False):
            return
        match event, arguments:
            case "open", (str() as path, *_) if recorder.covers(path):
                self._look(recorder)
            case "os.rename", (old, new, old_directory, new_directory):
                self._renamed(recorder, _path(old, old_directory), _path(new, new_directory))
            case (("os.remove" | "os.rmdir"), (name, directory)):
                self._removed(recorder, _path(name, directory))
            case _:
                pass

    def _renamed(self, recorder: Recorder, old: Path, new: Path) -> None:
        if recorder.covers(old):
            with recorder.lock:
                self._look(recorder)
                recorder.rename(old, new)

    def _removed(self, recorder: Recorder, path: Path) -> None:
        if recorder.covers(path):
            with recorder.lock:
                self._look(recorder)
                if recorder.inode(path) is not None:
                    recorder.unlink(path)

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


def _path(name: str | os.PathLike[str], directory: int) -> Path:
    """A path from what an audit event tells; `directory` is a descriptor, or -1."""
    if directory == -1:
        return Path(name).absolute()
    return Path(f"/proc/self/fd/{directory}").readlink() / name
