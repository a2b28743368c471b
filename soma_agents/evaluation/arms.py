"""Champion and candidate, loaded from what is on disk and checked before they are believed."""

from dataclasses import dataclass
from pathlib import Path

from arbiters.errors import CorruptError, NotFoundError
from soma_agents.language.lora import LoraAdapter, adapter_id
from soma_agents.language.model import LanguageModel
from soma_agents.settings import Settings
from soma_agents.storage.files import verify_manifest


@dataclass(frozen=True, slots=True)
class Arm:
    """A model version: the base model with an adapter, or (None) alone."""

    id: str
    adapter: LoraAdapter | None
    directory: Path | None


def load_arm(model: LanguageModel, version: str, settings: Settings) -> Arm:
    """The model version with this id.

    Raises:
        NotFoundError: there is none.
        CorruptError: a file is not what was written, or a weight is NaN or infinite.
    """
    if version == model.id:
        return Arm(version, None, None)
    directory = settings.home / "models" / version
    if not directory.is_dir():
        raise NotFoundError(f"model {version!r} is not in {directory.parent}; train it again")
    verify_manifest(directory)
    if (found := adapter_id(directory, model.id)) != version:
        raise CorruptError(
            f"{directory} holds adapter {found!r}; its name says {version!r}. Train it again"
        )
    return Arm(version, LoraAdapter.load(directory, model.config), directory)
