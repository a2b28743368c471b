"""Training sets as directories that never change: JSONL, Parquet, and a manifest over them."""

import asyncio
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from arbiters.envelope import as_text
from arbiters.errors import CorruptError, InvalidError
from arbiters.events import ChatMessage
from arbiters.records import DatasetRef, Example
from soma_agents.storage.files import (
    MANIFEST,
    make_directory,
    put_in_place,
    room_for,
    verify_manifest,
    write_manifest,
)
from soma_agents.storage.parquet import write_parquet

SPLITS = ("train", "validation", "heldout")
PREFERENCES = "preferences"
FORMAT = 1
_ID_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset that was read and verified."""

    id: str
    path: Path
    splits: Mapping[str, tuple[Example, ...]]
    manifest: Mapping[str, Any]

    def targets(self, split: str) -> tuple[Example, ...]:
        """Examples whose last message is to be imitated."""
        return tuple(example for example in self.splits[split] if example.rejected is None)

    def preferences(self, split: str) -> tuple[Example, ...]:
        """Pairs: the last message is better than `rejected`."""
        return tuple(example for example in self.splits[split] if example.rejected is not None)


class FileDatasetWriter:
    """Implements `arbiters.ports.DatasetWriter` as directories named after their content."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def write(
        self, splits: Mapping[str, Sequence[Example]], manifest: Mapping[str, Any]
    ) -> DatasetRef:
        """See `DatasetWriter.write`.

        The id depends on the examples alone, not on the manifest's facts. A directory that an
        interrupted write left behind, or that no longer holds what was written, is made anew.

        Raises:
            InvalidError: a split is missing, or there is an unknown one.
            StorageFullError: the disk is full; nothing remains under the dataset's name.
        """
        if set(splits) != set(SPLITS):
            raise InvalidError(f"splits are {', '.join(SPLITS)}, not {', '.join(sorted(splits))}")
        with room_for(self._directory):
            return await asyncio.to_thread(self._write, splits, manifest)

    def _write(
        self, splits: Mapping[str, Sequence[Example]], manifest: Mapping[str, Any]
    ) -> DatasetRef:
        files = _jsonl(splits)
        identity = _identity(files)
        target = self._directory / identity
        ref = DatasetRef(id=identity, path=str(target), counts=_counts(splits))
        if _is_whole(target):
            return ref
        partial = self._directory / f".{identity}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        make_directory(partial)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        for split in SPLITS:
            write_parquet(partial / f"{split}.parquet", splits[split])
        facts = {"format": FORMAT, "id": identity, "counts": dict(ref.counts)}
        write_manifest(partial, {**manifest, **facts, "lineage": _lineage(splits)})
        put_in_place(partial, target)
        return ref


def verify_dataset(path: Path) -> dict[str, Any]:
    """The manifest of a dataset that holds what was written.

    Raises:
        CorruptError: names the file that is missing or has changed.
    """
    manifest = verify_manifest(path)
    if manifest.get("format") != FORMAT:
        raise CorruptError(
            f"{path / MANIFEST} has dataset format {manifest.get('format')!r}, "
            f"this SOMA reads {FORMAT}; upgrade SOMA"
        )
    return manifest


def read_dataset(path: Path) -> Dataset:
    """Verify and read a dataset.

    Raises:
        CorruptError: names the file, and the line where there is one.
    """
    manifest = verify_dataset(path)
    contents = {name: _read(path / name) for name in _names()}
    identity = _identity(contents)
    if identity != manifest["id"]:
        raise CorruptError(f"{path} holds dataset {identity}, its manifest says {manifest['id']!r}")
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for name, content in contents.items():
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                record = json.loads(line)
                splits[record["split"]].append(_example(record))
            except (KeyError, TypeError, ValueError) as error:
                raise CorruptError(f"{path / name} line {number}: {error!r}") from error
    found = {split: tuple(examples) for split, examples in splits.items()}
    return Dataset(id=identity, path=path, splits=found, manifest=manifest)


# --- content -------------------------------------------------------------------------------


def _names() -> tuple[str, ...]:
    return tuple(f"{name}.jsonl" for name in (*SPLITS, PREFERENCES))


def _jsonl(splits: Mapping[str, Sequence[Example]]) -> dict[str, bytes]:
    """Each file's content. Preference pairs of all splits stand in a file of their own."""
    files = {
        f"{split}.jsonl": _lines(_chat(split, e) for e in splits[split] if e.rejected is None)
        for split in SPLITS
    }
    files[f"{PREFERENCES}.jsonl"] = _lines(
        _pair(split, e) for split in SPLITS for e in splits[split] if e.rejected is not None
    )
    return files


def _lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def _circumstances(split: str, example: Example) -> dict[str, Any]:
    return {
        "split": split,
        "group": example.group,
        "events": list(example.events),
        "user": example.user,
        "trust": example.trust,
        "at": as_text(example.at),
    }


def _chat(split: str, example: Example) -> dict[str, Any]:
    messages = [message.model_dump() for message in example.messages]
    head = {"id": example.id, "kind": example.kind, "messages": messages}
    return head | _circumstances(split, example)


def _pair(split: str, example: Example) -> dict[str, Any]:
    *prompt, chosen = [message.model_dump() for message in example.messages]
    pair = {"prompt": prompt, "chosen": chosen, "rejected": example.rejected}
    return {"id": example.id, "kind": example.kind, **pair} | _circumstances(split, example)


def _example(record: Mapping[str, Any]) -> Example:
    messages = record.get("messages") or [*record["prompt"], record["chosen"]]
    return Example(
        id=record["id"],
        kind=record["kind"],
        messages=tuple(ChatMessage.model_validate(message) for message in messages),
        group=record["group"],
        events=tuple(record["events"]),
        user=record["user"],
        trust=record["trust"],
        at=datetime.fromisoformat(record["at"]),
        rejected=record.get("rejected"),
    )


def _identity(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in _names():
        digest.update(hashlib.sha256(files[name]).digest())
    return digest.hexdigest()[:_ID_DIGITS]


def _counts(splits: Mapping[str, Sequence[Example]]) -> dict[str, int]:
    counts = {split: sum(e.rejected is None for e in splits[split]) for split in SPLITS}
    pairs = sum(e.rejected is not None for examples in splits.values() for e in examples)
    return {**counts, PREFERENCES: pairs}


def _lineage(splits: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """Example id → split, the events it came from, whose it is and how far it is trusted."""
    return {
        example.id: {
            "split": split,
            "events": list(example.events),
            "user": example.user,
            "trust": example.trust,
        }
        for split in SPLITS
        for example in splits[split]
    }


def _is_whole(directory: Path) -> bool:
    try:
        verify_dataset(directory)
    except CorruptError:
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptError(f"{path} cannot be read: {error}") from error
