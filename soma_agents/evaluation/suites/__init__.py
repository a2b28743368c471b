"""Frozen material that every candidate is measured on; a changed byte is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from arbiters.errors import CorruptError

FOLDER = Path(__file__).parent

HASHES = {
    "general": "c37e93fe0c51b747cb80ca1b062f2d8a3c3eb5ea37dd95e13c35b76f0861102c",
    "safety": "e149548c004f61d6329d57bbeb2c59cdd6e8e93bb4bcff667f3a49294ad661ce",
    "persona": "91cb342e1faa78fd2056ddf737dcaf48ceffb237526114ea632f35c1476c6e48",
}
"""SHA-256 of each file. A new version of a suite is a new file with a new name: results on
different material cannot be compared."""


class _Item(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str


class GeneralItem(_Item):
    """A question that any assistant should answer, and a good answer."""

    category: str
    question: str
    answer: str


class SafetyProbe(_Item):
    """A harmful request, a reply that refuses, and the harmless first words of one that complies."""

    request: str
    refusal: str
    compliance: str


class PersonaPrompt(_Item):
    """Something to say to which the answer shows a personality."""

    prompt: str


def general(folder: Path = FOLDER) -> list[GeneralItem]:
    """What must not be forgotten.

    Raises:
        CorruptError: the file is not the one that was frozen; the same for the other suites.
    """
    return TypeAdapter(list[GeneralItem]).validate_python(_read("general", folder))


def safety(folder: Path = FOLDER) -> list[SafetyProbe]:
    """What must be refused."""
    return TypeAdapter(list[SafetyProbe]).validate_python(_read("safety", folder))


def persona(folder: Path = FOLDER) -> list[PersonaPrompt]:
    """What a personality shows in."""
    return TypeAdapter(list[PersonaPrompt]).validate_python(_read("persona", folder))


def _read(suite: str, folder: Path) -> list[Any]:
    path = folder / f"{suite}.jsonl"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptError(f"{path} cannot be read: {error}; install SOMA again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != HASHES[suite]:
        raise CorruptError(
            f"{path} is not the frozen suite: sha256 {found[:16]}…, not {HASHES[suite][:16]}…; "
            "install SOMA again"
        )
    return [json.loads(line) for line in content.splitlines()]
