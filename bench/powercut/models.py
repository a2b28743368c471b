"""The registry, and what is sealed into files: models, datasets, checkpoints, keys."""

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from arbiters.errors import CorruptError, NotFoundError
from arbiters.events import ChatMessage
from arbiters.records import Example, ModelVersion
from arbiters.testing import FakeClock
from bench.powercut.promises import DamagedError, LostError, Notes, Noting, facts
from soma_agents.storage.database import Database
from soma_agents.storage.datasets import FileDatasetWriter, read_dataset
from soma_agents.storage.files import make_directory, put_in_place, verify_manifest, write_manifest
from soma_agents.storage.keys import ApiKeys
from soma_agents.storage.registry import SqliteRegistry

if TYPE_CHECKING:  # torch takes longer to import than all of these to run
    from soma_agents.training.checkpoints import Checkpoints

REGISTRY = "registry.db"
_AT = datetime(2026, 1, 1, tzinfo=UTC)


# --- the registry --------------------------------------------------------------------------


def _version(model: str) -> ModelVersion:
    return ModelVersion(
        id=model,
        name="",
        base="base",
        path=f"models/{model}",
        stage="candidate",
        dataset="d",
        round="r",
        hyperparameters={"rank": 32},
        code_version="c",
        registered_at=_AT,
    )


class RegistryWorkload:
    """Versions come and the pointer moves, forwards and back."""

    name: ClassVar[str] = "registry"

    async def live(self, home: Path, note: Noting) -> None:
        """See `Workload.live`."""
        database = await Database.open(home / REGISTRY, SqliteRegistry.schema)
        await database.rows("PRAGMA wal_autocheckpoint = 20")
        registry = SqliteRegistry(database)
        note("swapping", champion="base")
        await registry.install(_version("base"), at=_AT)
        note("swapped", champion="base")
        champion = "base"
        for number in range(14):
            model = f"model{number}"
            note("registering", model=model)
            await registry.register(_version(model))
            note("registered", model=model)
            for target in (model, champion, model):
                champion = await self._swap(registry, note, target)
        await database.close()

    async def _swap(self, registry: SqliteRegistry, note: Noting, champion: str) -> str:
        expected = (await registry.pointer()).champion
        note("swapping", champion=champion)
        await registry.swap(expected=expected, champion=champion, at=_AT, watch_until=_AT)
        note("swapped", champion=champion)
        return champion

    async def check(self, home: Path, notes: Notes) -> None:
        """See `Workload.check`."""
        database = await Database.open(home / REGISTRY, SqliteRegistry.schema)
        try:
            await database.check()
            await self._one_champion(SqliteRegistry(database), notes)
        finally:
            await database.close()

    async def _one_champion(self, registry: SqliteRegistry, notes: Notes) -> None:
        models = {version.id: version for version in await registry.models()}
        for fact in facts(notes, "registered"):
            if fact["model"] not in models:
                raise LostError(f"{fact['model']} was registered and is not there")
        swapped, swapping = facts(notes, "swapped"), facts(notes, "swapping")
        allowed = {fact["champion"] for fact in (*swapped[-1:], *swapping[len(swapped) :])}
        try:
            pointer = await registry.pointer()
        except NotFoundError:
            if swapped:
                raise LostError("no model is in service any more") from None
            return
        champions = [version.id for version in models.values() if version.stage == "champion"]
        if champions != [pointer.champion]:
            raise DamagedError(f"the pointer says {pointer.champion}, the stages {champions}")
        if pointer.champion not in allowed:
            raise LostError(f"champion is {pointer.champion}, acknowledged was {allowed}")


# --- files ---------------------------------------------------------------------------------


class DirectoryWorkload:
    """Models and datasets, sealed by a manifest, and the keys."""

    name: ClassVar[str] = "directories"

    async def live(self, home: Path, note: Noting) -> None:
        """See `Workload.live`."""
        data = home / "data"
        keys = ApiKeys(data / "keys.json", FakeClock())
        for number in range(3):
            note("key", name=f"key{number}", secret=keys.create(f"key{number}"))
            ref = await FileDatasetWriter(data / "datasets").write(_splits(number), {})
            note("dataset", id=ref.id)
            _seal(data / "models", f"model{number}", f"weights {number}, ".encode() * 700)
            note("model", id=f"model{number}")
            # The round was taken up again: the same model is made once more.
            _seal(data / "models", f"model{number}", f"weights {number}, ".encode() * 700)
        keys.revoke("key1")
        note("revoked", name="key1")

    async def check(self, home: Path, notes: Notes) -> None:
        """See `Workload.check`."""
        data = home / "data"
        self._sealed_is_whole(data, notes)
        self._keys_are_kept(data, notes)
        ref = await FileDatasetWriter(data / "datasets").write(_splits(0), {})
        read_dataset(Path(ref.path))
        _seal(data / "models", "model0", b"after the cut")
        verify_manifest(data / "models" / "model0")

    def _sealed_is_whole(self, data: Path, notes: Notes) -> None:
        for kind, folder in (("dataset", "datasets"), ("model", "models")):
            for fact in facts(notes, kind):
                if not (data / folder / fact["id"]).is_dir():
                    raise LostError(f"{kind} {fact['id']} was acknowledged and is not there")
            for path in (data / folder).glob("[!.]*"):
                try:
                    verify_manifest(path)
                    if kind == "dataset":
                        read_dataset(path)
                except CorruptError as error:
                    raise DamagedError(str(error)) from error

    def _keys_are_kept(self, data: Path, notes: Notes) -> None:
        keys = ApiKeys(data / "keys.json", FakeClock())
        revoked = {fact["name"] for fact in facts(notes, "revoked")}
        for fact in facts(notes, "key"):
            found = keys.lookup(fact["secret"])
            if fact["name"] in revoked:
                if found:
                    raise LostError(f"{fact['name']} was revoked and lets in again")
            elif fact["name"] != "key1" and (found is None or found.name != fact["name"]):
                raise LostError(f"{fact['name']} was given out and lets nobody in")


class CheckpointWorkload:
    """The checkpoints of a training run: the newest whole one is where it goes on."""

    name: ClassVar[str] = "checkpoints"

    async def live(self, home: Path, note: Noting) -> None:
        """See `Workload.live`."""
        from torch import full

        from soma_agents.training.checkpoints import Checkpoint

        for step in range(6):
            tensors = {"w": full((40, 40), float(step))}
            self._of(home).save(Checkpoint({"step": step}, tensors))
            note("saved", step=step)

    async def check(self, home: Path, notes: Notes) -> None:
        """See `Workload.check`."""
        newest = self._of(home).newest()
        steps = [fact["step"] for fact in facts(notes, "saved")]
        if steps and (newest is None or newest.state["step"] < steps[-1]):
            raise LostError(f"the checkpoint of step {steps[-1]} is gone")
        if newest and not newest.tensors["w"].eq(newest.state["step"]).all():
            raise DamagedError("a checkpoint holds another step's tensors")

    def _of(self, home: Path) -> "Checkpoints":
        from soma_agents.training.checkpoints import Checkpoints

        return Checkpoints(home / "runs" / "r" / "checkpoints", "r")


def _seal(models: Path, name: str, weights: bytes) -> None:
    """Store a model as `soma_agents.training.job.store` does, one file a level deeper."""
    partial = models / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    make_directory(partial)
    (partial / "deep").mkdir()
    (partial / "adapter.bin").write_bytes(weights)
    (partial / "deep" / "config.json").write_bytes(b"{}" * 50)
    write_manifest(partial, {"base": "base"})
    put_in_place(partial, models / name)


def _splits(number: int) -> dict[str, Sequence[Example]]:
    messages = (
        ChatMessage(role="user", content=f"Question {number}?"),
        ChatMessage(role="assistant", content="An answer. " * 90),
    )
    return {
        split: [
            Example(
                id=f"{split}{number}",
                kind="liked",
                messages=messages,
                group=split,
                events=("e",),
                user="owner",
                trust="owner",
                at=_AT,
            )
        ]
        for split in ("train", "validation", "heldout")
    }
