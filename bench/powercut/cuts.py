"""Record a workload once, then cut it at many places and look at what is left."""

import asyncio
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from random import Random

from bench.powercut.disk import Disk, Tree, materialise
from bench.powercut.logs import EventLogWorkload, HostWorkload
from bench.powercut.models import CheckpointWorkload, DirectoryWorkload, RegistryWorkload
from bench.powercut.promises import LostError, Notes, Workload
from bench.powercut.recorder import Effect, Note, Recorder
from bench.powercut.vfs import RecordingVfs
from bench.powercut.watch import FileWatch
from bench.powercut.weaknesses import suffering

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        EventLogWorkload(),
        HostWorkload(),
        RegistryWorkload(),
        DirectoryWorkload(),
        CheckpointWorkload(),
    )
}

AT_ONCE = 8
"""Cuts looked at together: most of the time of each is waiting for SQLite's thread."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A promise that did not survive; `number` and the seed bring the same cut about again."""

    workload: str
    number: int
    place: int
    because: str


@dataclass(slots=True)
class Tally:
    """What came of the cuts of one workload."""

    cuts: int = 0
    lost: list[Failure] = field(default_factory=list[Failure])
    corrupt: list[Failure] = field(default_factory=list[Failure])

    @property
    def failures(self) -> list[Failure]:
        """All that failed."""
        return self.lost + self.corrupt


# --- recording -----------------------------------------------------------------------------


Recording = Sequence[Effect]
Run = tuple[str, str | None]
"""A workload and the weakness it runs with, if any."""


def record(runs: Sequence[Run]) -> dict[Run, Recording]:
    """Run workloads in a process of its own: what watches them stays in it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_record, runs).result()


def _record(runs: Sequence[Run]) -> dict[Run, Recording]:
    sqlite, files = RecordingVfs(), FileWatch()
    recordings: dict[Run, Recording] = {}
    for name, weakness in runs:
        with tempfile.TemporaryDirectory(dir=_fast()) as home, suffering(weakness):
            recorder = Recorder(Path(home))
            sqlite.recorder = recorder
            files.attach(recorder)
            asyncio.run(WORKLOADS[name].live(recorder.root, recorder.note))
            files.attach(None)
            sqlite.recorder = None
            _compare(recorder)
        recordings[name, weakness] = recorder.effects
    return recordings


def _compare(recorder: Recorder) -> None:
    """A recording that missed an effect would prove nothing.

    Raises:
        RuntimeError: played back, it does not give the very files that are there.
    """
    disk = Disk()
    for effect in recorder.effects:
        disk.apply(effect)
    played = disk.keep_power()
    found = {
        path.relative_to(recorder.root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in recorder.root.rglob("*")
    }
    differing = {name for name in played.keys() | found.keys() if _differ(name, played, found)}
    if differing:
        raise RuntimeError(f"the recording differs from the disk in {sorted(differing)}")


def _differ(name: str, one: Tree, other: Tree) -> bool:
    return name not in one or name not in other or one[name] != other[name]


# --- cutting -------------------------------------------------------------------------------


async def cut(name: str, effects: Recording, *, cuts: int, seed: int) -> Tally:
    """Let the power fail at `cuts` places, in order, so that one replay serves all."""
    places = _places(effects, cuts, Random(f"{seed}/{name}"))
    disk, applied, tally = Disk(), 0, Tally(cuts)
    slots = asyncio.Semaphore(AT_ONCE)

    async def look(number: int, place: int, tree: Tree) -> None:
        notes = [effect for effect in effects[:place] if isinstance(effect, Note)]
        error = await _broken(WORKLOADS[name], tree, notes)
        slots.release()
        if error is not None:
            because = "".join(traceback.format_exception_only(error)).strip()
            failure = Failure(name, number, place, because)
            (tally.lost if isinstance(error, LostError) else tally.corrupt).append(failure)

    async with asyncio.TaskGroup() as looking:
        for number, place in enumerate(places):
            for effect in effects[applied:place]:
                disk.apply(effect)
            applied = place
            await slots.acquire()
            tree = disk.lose_power(Random(f"{seed}/{name}/{number}"))
            looking.create_task(look(number, place, tree))
    return tally


def _places(effects: Recording, cuts: int, dice: Random) -> list[int]:
    """Half of them anywhere, half just after a note: there a hasty acknowledgement shows."""
    noted = [place for place, effect in enumerate(effects, start=1) if isinstance(effect, Note)]
    anywhere = range(len(effects) + 1)
    return sorted(dice.choice((anywhere, noted)[number % 2]) for number in range(cuts))


async def _broken(workload: Workload, tree: Tree, notes: Notes) -> Exception | None:
    with tempfile.TemporaryDirectory(dir=_fast()) as home:
        materialise(tree, Path(home))
        try:
            await workload.check(Path(home), notes)
        except Exception as error:  # noqa: BLE001 - whatever it is, it did not survive
            return error
    return None


def _fast() -> str | None:
    """Memory, where there is any to be had as files: the disk is simulated, after all."""
    memory = Path("/dev/shm")  # noqa: S108 - only as the parent of a temporary directory
    return str(memory) if memory.is_dir() else None
