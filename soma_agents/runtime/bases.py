"""Base models of our own among the models: taken in by their `.sou` file, found by its id."""

import json
import shutil
from pathlib import Path
from typing import Any

from arbiters.errors import InvalidError, NotFoundError
from soma_agents.language.sou.checkpoint import SouCheckpoint
from soma_agents.language.source import base_id
from soma_agents.serving.specialists import FILE
from soma_agents.storage.files import (
    make_directory,
    put_in_place,
    read_manifest,
    room_for,
    write_manifest,
)


def keep_base(file: Path, models: Path) -> str:
    """Copy a model's file to where it is served from, verified; the id it lies under.

    Raises:
        NotFoundError, InvalidError, CorruptError: it is not there, no `.sou` file, or damaged.
        StorageFullError: the disk is full.
    """
    checkpoint = SouCheckpoint(file)
    try:
        checkpoint.file.verify()
        if not checkpoint.tokenizer().template:
            raise InvalidError(
                f"{str(file)!r} has no chat template: it cannot answer; `soma pretrain DIALOGUES "
                "--from` makes a model that does"
            )
        lineage = lineage_of(checkpoint.file.directory.metadata)
    finally:
        checkpoint.close()
    model = base_id(file)
    partial = models / f".{model}.partial"
    with room_for(models):
        shutil.rmtree(partial, ignore_errors=True)
        make_directory(partial)
        shutil.copyfile(file, partial / FILE)
        write_manifest(partial, {"model": model, "lineage": lineage})
        put_in_place(partial, models / model)
    return model


def kept_lineage(model: str, models: Path) -> dict[str, Any]:
    """What a base model that was taken in was made from.

    Raises:
        NotFoundError: none lies under this id.
    """
    if not (model.removeprefix("base-").isalnum() and (models / model / FILE).is_file()):
        raise NotFoundError(f"no base model {model!r} was taken in; `soma models add` does it")
    return dict(read_manifest(models / model).get("lineage", {}))


def lineage_of(metadata: dict[str, str]) -> dict[str, Any]:
    """What a file's metadata tell of its making; nothing if it was not made by `soma pretrain`."""
    try:
        found = json.loads(metadata.get("lineage", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
