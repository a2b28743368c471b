"""Mistakes on purpose. Each must be found by its workload, or the simulator proves nothing."""

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.powercut import models
from soma_agents.storage import database, datasets, files


@dataclass(frozen=True, slots=True)
class Weakness:
    """A mistake while it lasts, and the workload that must find it."""

    make: Callable[[], AbstractContextManager[None]]
    workload: str


def _synchronous_normal() -> AbstractContextManager[None]:
    """Commits are acknowledged before they are synced."""
    weaker = [pragma.replace("FULL", "NORMAL") for pragma in database._PRAGMAS]  # noqa: SLF001
    return _replaced("_PRAGMAS", tuple(weaker), database)


def _erasure_not_synced() -> AbstractContextManager[None]:
    """The emptied write-ahead log is not synced, so the erased may come back in its bytes."""
    return _replaced("sync_file", _nothing, database)


def _content_not_synced() -> AbstractContextManager[None]:
    """The manifest vouches for files whose content may still be on its way."""
    return _replaced("sync_file", _nothing, files)


def _names_not_synced() -> AbstractContextManager[None]:
    """Files are synced, the directories that name them are not."""
    return _replaced("sync_directory", _nothing, files)


@contextmanager
def _manifest_first() -> Generator[None]:
    """All is synced, but only after the manifest can be found."""
    sync, put = files.sync_file, files.put_in_place

    def put_in_place(partial: Path, target: Path) -> None:
        put(partial, target)
        for path in target.rglob("*"):
            sync(path)

    with _content_not_synced(), _replaced("put_in_place", put_in_place, datasets, models):
        yield


WEAKNESSES: Mapping[str, Weakness] = {
    "synchronous_normal": Weakness(_synchronous_normal, "event_log"),
    "erasure_not_synced": Weakness(_erasure_not_synced, "event_log"),
    "content_not_synced": Weakness(_content_not_synced, "directories"),
    "names_not_synced": Weakness(_names_not_synced, "directories"),
    "manifest_first": Weakness(_manifest_first, "directories"),
}


def suffering(weakness: str | None) -> AbstractContextManager[None]:
    """With the weakness of this name, or with none."""
    return WEAKNESSES[weakness].make() if weakness else nullcontext()


def _nothing(_: Path) -> None:
    pass


@contextmanager
def _replaced(name: str, value: Any, *modules: ModuleType) -> Generator[None]:
    before = [getattr(module, name) for module in modules]
    for module in modules:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            setattr(module, name, old)
