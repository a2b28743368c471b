"""A disk that is full at the n-th write, for every n: `python -m bench.diskfull [--seed S]`.

A small life of the event log, of an arbiter's host, and of models, datasets and keys is lived
again and again, each time with no room from one write further on. Whoever writes must be told so
by StorageFullError; nothing half may be visible, nothing acknowledged lost; and once there is room
the same objects go on.
"""

import argparse
import asyncio
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from arbiters.errors import StorageFullError
from arbiters.events import ConversationDeleted
from arbiters.testing import FakeClock
from bench.powercut.logs import HostWorkload, _Counts, _event, _open_log
from bench.powercut.models import _seal, _splits
from bench.powercut.recorder import Recorder
from bench.powercut.vfs import RecordingVfs
from soma_agents.storage.datasets import FileDatasetWriter, read_dataset
from soma_agents.storage.files import room_for, verify_manifest
from soma_agents.storage.keys import ApiKeys

GROUPS = 8
STEPS = 100_000
"""Far beyond the writes of any of these lives."""


class FullDisk(Recorder):
    """Has room for `room` writes, and for any number once it is freed."""

    def __init__(self, root: Path, room: int) -> None:
        super().__init__(root)
        self.room = room
        self.refused = 0

    def free(self) -> None:
        """Somebody deletes what nobody needs."""
        self.room = STEPS

    def take(self) -> None:
        """Raises StorageFullError when there is no room."""
        with self.lock:
            if self.room <= 0:
                self.refused += 1
                raise StorageFullError("simulated")
            self.room -= 1

    def write(self, inode: int, offset: int, data: bytes) -> None:  # noqa: ARG002 - see Recorder
        self.take()


class PlainFiles:
    """The same for everybody else's files: making a file or a directory, and syncing, takes room.

    What is refused at a sync was written in part: half of the file is cut off.
    """

    def __init__(self) -> None:
        self.disk: FullDisk | None = None
        self._fsync = os.fsync
        os.fsync = self._synced
        sys.addaudithook(self._heard)

    def _synced(self, handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        # Of a directory everything was written when its names were made, of a database by SQLite.
        if path.is_file() and ".db" not in path.suffix:
            try:
                self._take(path)
            except OSError:
                os.truncate(path, path.stat().st_size // 2)
                raise
        self._fsync(handle)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        match event, arguments:
            case "open", (str() as path, _, int() as flags) if flags & os.O_CREAT:
                self._take(path)
            case "os.mkdir", (path, *_) if not Path(path).exists():
                self._take(path)
            case _:
                pass

    def _take(self, path: str | Path) -> None:
        if self.disk is not None and self.disk.covers(path):
            try:
                self.disk.take()
            except StorageFullError:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None


async def again(disk: FullDisk, work: Callable[[], Awaitable[Any]]) -> tuple[Any, bool]:
    """Do it; if the disk is full, free some room and do it again. And whether it was."""
    try:
        return await work(), False
    except StorageFullError:
        disk.free()
        return await work(), True


# --- lives ---------------------------------------------------------------------------------


async def of_a_log(home: Path, disk: FullDisk) -> None:
    """Groups are appended, some erased."""
    (log, database), _ = await again(disk, lambda: _open_log(home))
    kept: dict[str, int] = {}
    for group in range(GROUPS):
        names = [f"{group}.{number}" for number in range(4)]
        events = [_event(name, ConversationDeleted(conversation=name * 300)) for name in names]
        try:
            offsets = await log.append(events)
        except StorageFullError:
            end = await log.end()
            assert end == len(kept), "part of a refused group is there"
            assert [await log.find(name) for name in names] == [None] * 4
            left = end - group  # one of each group before was erased
            assert len((await log.read(0)).envelopes) == left, "reading does not go on"
            disk.free()
            offsets = await log.append(events)
        kept |= dict(zip(names, offsets, strict=True))
        erased, _ = await again(disk, lambda names=names: log.erase(names[:1]))
        assert erased in {0, 1}
    await _whole_log(home, log, kept)
    await database.check()
    await log.close()
    (log, _), _ = await again(disk, lambda: _open_log(home))
    await _whole_log(home, log, kept)
    await log.close()


async def _whole_log(_: Path, log: Any, kept: dict[str, int]) -> None:
    assert await log.verify() == len(kept), "the chain has another length"
    found = {name: await log.find(name) for name in kept}
    assert {n: e and e.offset for n, e in found.items()} == kept, "acknowledged events are lost"


async def of_a_host(home: Path, disk: FullDisk) -> None:
    """An arbiter counts events and says so; it is told once when there is room again."""
    life = HostWorkload()
    (log, _), _ = await again(disk, lambda: _open_log(home))
    (state, host), _ = await again(disk, lambda: life._host(home, log, "life"))  # noqa: SLF001
    for group in range(GROUPS // 2):
        events = [
            _event(name, ConversationDeleted(conversation=name))
            for name in (f"{group}.{number}" for number in range(6))
        ]
        await again(disk, lambda events=events: log.append(events))
        await again(disk, host.drain)
    await life._effects_are_once(state, log, [])  # noqa: SLF001
    assert len(await _Counts(state).all()) == 6 * (GROUPS // 2), "an event was not handled"
    assert not await host.dead_letters(), "a full disk was held against an event"
    await state.check()
    await state.close()
    await log.close()


async def of_files(home: Path, disk: FullDisk) -> None:
    """Datasets and models are sealed, keys made."""
    data = home / "data"
    keys = ApiKeys(data / "keys.json", FakeClock())
    secrets: dict[str, str] = {}
    for number in range(2):
        name = f"key{number}"

        async def key(name: str = name) -> str:
            return keys.create(name)

        async def dataset(number: int = number) -> Any:
            return await FileDatasetWriter(data / "datasets").write(_splits(number), {})

        async def model(number: int = number) -> None:
            with room_for(data):
                _seal(data / "models", f"model{number}", b"weights" * 900)

        for work in (key, dataset, model):
            try:
                made = await work()
            except StorageFullError:
                _nothing_half(data, keys, secrets)
                disk.free()
                made = await work()
            if isinstance(made, str):  # a key's secret
                secrets[name] = made
    _nothing_half(data, keys, secrets)
    assert len(_sealed(data)) == 4, "something that was made is not there"


def _nothing_half(data: Path, keys: ApiKeys, secrets: dict[str, str]) -> None:
    for path in _sealed(data):
        verify_manifest(path)
        if path.parent.name == "datasets":
            read_dataset(path)
    found = {key.name for key in keys.list()}
    assert secrets.keys() == found, f"keys are {found}, acknowledged were {set(secrets)}"


def _sealed(data: Path) -> list[Path]:
    return [*data.glob("models/[!.]*"), *data.glob("datasets/[!.]*")]


LIVES = {"log": of_a_log, "host": of_a_host, "files": of_files}


# --- every n -------------------------------------------------------------------------------


def every_write(name: str, stride: int = 1) -> dict[str, Any]:
    """Live with room for 0, 1, 2 … writes until there is room for all; in a process of its own.

    With a `stride` of three for 0, 3, 6 … writes.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_every_write, name, stride).result()


def _every_write(name: str, stride: int) -> dict[str, Any]:
    sqlite, files = RecordingVfs(), PlainFiles()
    failures: list[str] = []
    room = places = 0
    while True:
        home = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))  # noqa: S108
        disk = FullDisk(home, room)
        sqlite.recorder = files.disk = disk
        try:
            asyncio.run(LIVES[name](disk.root, disk))
        except Exception as error:  # noqa: BLE001 - whatever it is, it was not survived
            failures.append(f"{name} with room for {room} writes: {type(error).__name__}: {error}")
        finally:
            sqlite.recorder = files.disk = None
            with suppress(OSError):
                shutil.rmtree(home)
        if not disk.refused:
            return {"places": places, "failures": failures}
        room, places = room + stride, places + 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each life and one JSON line; 0 iff every life was survived."""
    parser = argparse.ArgumentParser(prog="bench.diskfull", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the order of the lives")
    seed = parser.parse_args(arguments).seed
    places, failures = {}, list[str]()
    for name in Random(seed).sample(sorted(LIVES), len(LIVES)):
        found = every_write(name)
        places[name] = found["places"]
        failures += found["failures"]
        print(f"{name}: full at each of {found['places']} writes, {len(found['failures'])} failed")
    for failure in failures[:5]:
        print(f"  {failure}")
    result = {
        "ok": not failures,
        "figure": len(failures),
        "target": 0,
        "unit": "broken promises",
        "places": places,
        "seed": seed,
    }
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
