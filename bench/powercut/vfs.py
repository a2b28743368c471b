"""Recording what SQLite does to its files, inside the very library that Python's sqlite3 uses.

A VFS (https://sqlite.org/vfs.html) is registered as the default one. It lends the platform's own
functions and notes each write, truncate, sync, deletion and directory sync. Nothing is compiled
and nothing of ours knows of it; it stays until the process ends, so give it one of its own.
"""

import _sqlite3
import ctypes
import os
import traceback
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

from arbiters.errors import StorageFullError
from bench.powercut.recorder import Recorder

_OK = 0
_FULL = 13
_IOERR = 10  # https://sqlite.org/rescode.html#ioerr
_NAME = b"powercut"

_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_Delete = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_SetCall = CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p)
_GetCall = CFUNCTYPE(c_void_p, c_void_p, c_char_p)
_Close = CFUNCTYPE(c_int, c_void_p)
_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)
_OpenDirectory = CFUNCTYPE(c_int, c_char_p, POINTER(c_int))


class _Vfs(Structure):
    """`sqlite3_vfs`, version 3: https://sqlite.org/c3ref/vfs.html."""

    _fields_ = (
        ("iVersion", c_int),
        ("szOsFile", c_int),
        ("mxPathname", c_int),
        ("pNext", c_void_p),
        ("zName", c_char_p),
        ("pAppData", c_void_p),
        ("xOpen", _Open),
        ("xDelete", _Delete),
        ("between", c_void_p * 11),  # xAccess to xCurrentTimeInt64
        ("xSetSystemCall", _SetCall),
        ("xGetSystemCall", _GetCall),
        ("xNextSystemCall", c_void_p),
    )


class _Methods(Structure):
    """`sqlite3_io_methods`, version 3: https://sqlite.org/c3ref/io_methods.html."""

    _fields_ = (
        ("iVersion", c_int),
        ("xClose", _Close),
        ("xRead", c_void_p),
        ("xWrite", _Write),
        ("xTruncate", _Truncate),
        ("xSync", _Sync),
        ("beyond", c_void_p * 13),  # xFileSize to xUnfetch
    )


class _File(Structure):
    """`sqlite3_file`; the platform's own fields follow it."""

    _fields_ = (("methods", POINTER(_Methods)),)


class RecordingVfs:
    """Lends the default VFS its functions and tells `recorder`, which may be changed meanwhile."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self._inodes: dict[int, int] = {}
        self._lent: dict[int, _Methods] = {}
        library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
        library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        self._real: _Vfs = library.sqlite3_vfs_find(None).contents
        self._ours = _Vfs.from_buffer_copy(self._real)
        self._ours.pNext, self._ours.zName = None, _NAME
        self._ours.xOpen, self._ours.xDelete = (
            _Open(_careful(self._open)),
            _Delete(_careful(self._delete)),
        )
        self._watch_directories()
        if library.sqlite3_vfs_register(ctypes.byref(self._ours), 1) != _OK:
            raise RuntimeError("SQLite refuses the recording VFS")

    def _watch_directories(self) -> None:
        """SQLite opens a directory for one thing only, to sync it."""
        name = b"openDirectory"
        real_address = self._real.xGetSystemCall(ctypes.byref(self._real), name)
        real = _OpenDirectory(real_address)

        def open_directory(file: bytes, handle: Any) -> int:
            recorder = self._recorder(file)
            if recorder is not None:
                recorder.sync_directory(Path(os.fsdecode(file)).parent)
            return real(file, handle)

        self._open_directory = _OpenDirectory(_careful(open_directory))
        address = ctypes.cast(self._open_directory, c_void_p)
        self._real.xSetSystemCall(ctypes.byref(self._real), name, address)

    def _recorder(self, path: bytes | None) -> Recorder | None:
        recorder = self.recorder
        return recorder if recorder and path and recorder.covers(os.fsdecode(path)) else None

    # --- names -----------------------------------------------------------------------------

    def _open(self, vfs: int, name: int | None, file: int, flags: int, out: Any) -> int:
        # SQLite reads parameters behind the name's end, so the pointer itself is passed on.
        path = ctypes.string_at(name) if name else None
        recorder = self._recorder(path)
        if recorder is None or path is None:
            return self._real.xOpen(vfs, name, file, flags, out)
        with recorder.lock:
            code = self._real.xOpen(vfs, name, file, flags, out)
            if code == _OK:
                place = Path(os.fsdecode(path))
                inode = recorder.inode(place)
                self._inodes[file] = recorder.create(place) if inode is None else inode
                recorder.seen_by_sqlite.add(self._inodes[file])
                self._lend(_File.from_address(file))
        return code

    def _delete(self, vfs: int, name: bytes, sync: int) -> int:
        recorder = self._recorder(name)
        if recorder is None:
            return self._real.xDelete(vfs, name, sync)
        with recorder.lock:
            place = Path(os.fsdecode(name))
            if recorder.inode(place) is not None:
                recorder.unlink(place)
            return self._real.xDelete(vfs, name, sync)

    # --- content ---------------------------------------------------------------------------

    def _lend(self, file: _File) -> None:
        """Give an open file a copy of its methods in which four are ours."""
        address = ctypes.addressof(file.methods.contents)
        if address not in self._lent:
            self._lent[address] = self._methods(file.methods.contents)
        file.methods = ctypes.pointer(self._lent[address])

    def _methods(self, real: _Methods) -> _Methods:
        def write(file: int, data: int, size: int, offset: int) -> int:
            if (recorder := self.recorder) is not None:
                recorder.write(self._inodes[file], offset, ctypes.string_at(data, size))
            return real.xWrite(file, data, size, offset)

        def truncate(file: int, size: int) -> int:
            if (recorder := self.recorder) is not None:
                recorder.truncate(self._inodes[file], size)
            return real.xTruncate(file, size)

        def sync(file: int, flags: int) -> int:
            code = real.xSync(file, flags)
            if (recorder := self.recorder) is not None:
                recorder.sync(self._inodes[file])
            return code

        def close(file: int) -> int:
            del self._inodes[file]
            return real.xClose(file)

        ours = _Methods.from_buffer_copy(real)
        ours.xWrite, ours.xTruncate = _Write(_careful(write)), _Truncate(_careful(truncate))
        ours.xSync, ours.xClose = _Sync(_careful(sync)), _Close(_careful(close))
        return ours


def _careful(function: Callable[..., int]) -> Callable[..., int]:
    """No exception can pass through C: SQLite gets an I/O error instead, the reader a trace.

    A recorder that raises StorageFullError makes the disk full.
    """

    def called(*arguments: Any) -> int:
        try:
            return function(*arguments)
        except StorageFullError:
            return _FULL
        except Exception:  # noqa: BLE001 - see above
            traceback.print_exc()
            return _IOERR

    return called
