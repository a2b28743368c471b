"""One SOMA a data directory: a lock that dies with the processes that hold it."""

import fcntl
import json
import os
from pathlib import Path

from arbiters.errors import ConflictError


class HomeLock:
    """Held from construction until `release`, or until every process that has `descriptor` died.

    Raises:
        ConflictError: another process holds it; the message says which.
    """

    def __init__(self, home: Path) -> None:
        self.path = home / "run" / "lock"
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _written(self.path)
            holder = f" (process {pid})" if pid else ""
            os.close(self.descriptor)
            raise ConflictError(
                f"data directory {str(home)!r} is in use by another SOMA{holder}; stop it with "
                f"`soma down --home {home}` or choose another with --home"
            ) from None
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps({"pid": os.getpid()}).encode(), 0)

    def release(self) -> None:
        """Let others have the directory."""
        os.close(self.descriptor)


def holder_of(home: Path) -> int | None:
    """The process that took the lock last, or None when nobody holds it."""
    path = home / "run" / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _written(path)
    else:
        return None
    finally:
        os.close(descriptor)


def _written(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None
