"""Opening any model by name: the package, a file, a `transformers` directory, a hub repository.

Hybrid: what is named is looked for here first; only `hub:OWNER/NAME` may ask the network.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arbiters.errors import CorruptError, InvalidError, NotFoundError, UnavailableError
from soma_agents.language.architecture import TransformerConfig
from soma_agents.language.checkpoint import Checkpoint, open_checkpoint
from soma_agents.language.hub.families import family_of
from soma_agents.language.hub.table import Json
from soma_agents.language.hub.to_gguf import GgufKind, export_gguf, ollama_modelfile
from soma_agents.language.hub.to_transformers import export_transformers
from soma_agents.language.linear import Linear
from soma_agents.language.sou.card import Card
from soma_agents.language.sou.checkpoint import SouCheckpoint
from soma_agents.language.source import locate
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.language.transformer import weight_shapes

HUB = "hub:"
SIZES = TypeAdapter(TransformerConfig)
MOST_JSON = 64 << 20
"""Bytes of the longest JSON file that is read."""


class HubCheckpoint:
    """See `Checkpoint`: a directory as `transformers` writes it, of a family that a table knows.

    Raises:
        NotFoundError: a file is missing.
        CorruptError: a file is damaged or contradicts the configuration.
        InvalidError: no table knows the architecture or one of its settings.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        said = self._json("config.json")
        self._said = said
        try:
            self._family = family_of(said)
            found = json.dumps(asdict(self._family.config(said)))
            self.config: TransformerConfig = SIZES.validate_json(found, strict=True)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise CorruptError(f"{directory}/config.json lacks or breaks {error}") from error
        self._files = self._open_weights()
        self._homes = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118
        if self.config.layers > len(self._homes):
            raise CorruptError(f"{directory} declares {self.config.layers!r} layers it has not")
        self._shapes = weight_shapes(self.config)

    def close(self) -> None:
        """Let go of the files."""
        self._files, self._homes = [], {}

    def tokenizer(self) -> ChatTokenizer:
        """Text ↔ tokens."""
        path = self._directory / "tokenizer.json"
        if not path.is_file():
            raise NotFoundError(f"{self._directory} has no tokenizer.json")
        return ChatTokenizer.from_json(
            path.read_text(),
            template=self._template(),
            eos_ids=self._eos_ids(),
            most_tokens=self.config.vocab_size,
        )

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor named as in `Transformer.state_dict`."""
        source = self._family.source(name)
        parts = [self._theirs(theirs) for theirs in source.names]
        try:
            made = source.make(parts, self.config)
        except (RuntimeError, IndexError) as error:
            raise CorruptError(f"{source.names[0]!r} and {self.config!r}: {error}") from error
        if tuple(made.shape) != self._shapes[name]:
            raise CorruptError(
                f"{source.names[0]!r} makes {tuple(made.shape)!r}, "
                f"the configuration says {self._shapes[name]!r}"
            )
        return made.to(dtype)

    def linear(self, name: str) -> Linear | None:
        """Nothing here is stored in blocks."""
        del name
        return None

    def _theirs(self, name: str) -> Tensor:
        for known in (name, name.partition(".")[2]):  # some are saved without the outermost module
            if known in self._homes:
                return self._homes[known].get_tensor(known).float()
        raise CorruptError(f"{self._directory} has no tensor {name!r}")

    def _open_weights(self) -> list[Any]:
        paths = sorted(self._directory.glob("*.safetensors"))
        if not paths:
            raise NotFoundError(
                f"{self._directory} has no .safetensors file; convert pickled weights first"
            )
        try:
            return [safe_open(path, "pt") for path in paths]
        except (SafetensorError, OSError) as error:
            raise CorruptError(f"the weights in {self._directory} are damaged: {error}") from error

    def _template(self) -> str:
        """The chat template; the tokens it names are set in front of it."""
        path = self._directory / "chat_template.jinja"
        said = self._json("tokenizer_config.json", needed=False)
        template = path.read_text() if path.is_file() else said.get("chat_template")
        if not isinstance(template, str) or not template:
            return ""
        names = {key: _content(said.get(key)) for key in ("bos_token", "eos_token")}
        return (
            "".join(
                f"{{% set {key} = {json.dumps(value)} %}}"
                for key, value in names.items()
                if value and key in template
            )
            + template
        )

    def _eos_ids(self) -> tuple[int, ...]:
        for said in (self._json("generation_config.json", needed=False), self._said):
            found = said.get("eos_token_id")
            ids = found if isinstance(found, list) else [found]
            if found is not None:
                return tuple(i for i in ids if isinstance(i, int))
        return ()

    def _json(self, name: str, *, needed: bool = True) -> Json:
        path = self._directory / name
        if not path.is_file():
            if needed:
                raise NotFoundError(f"{self._directory} has no {name}")
            return {}
        if path.stat().st_size > MOST_JSON:
            raise InvalidError(f"{path} has {path.stat().st_size!r} bytes; {MOST_JSON!r} at most")
        try:
            found = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise CorruptError(f"{path} is no JSON: {error}") from error
        if not isinstance(found, Mapping):
            raise CorruptError(f"{path} holds {found!r:.40}, not a table")
        return found


def open_source(source: str) -> Checkpoint:
    """Open "smollm2", a `.sou` or GGUF file, a `transformers` directory, or `hub:OWNER/NAME`.

    Raises:
        NotFoundError: there is no such thing.
        UnavailableError: the hub does not answer.
        CorruptError: it is damaged or contradicts itself.
        InvalidError: it is of an architecture that is not known.
    """
    if source.startswith(HUB):
        return HubCheckpoint(_fetched(source.removeprefix(HUB)))
    path = Path(source).expanduser()
    return HubCheckpoint(path) if path.is_dir() else open_checkpoint(locate(source))


def write_for(source: Checkpoint, directory: Path, format_: str, kind: str) -> list[Path]:
    """Write a model for other programs; returns what was written.

    Raises:
        InvalidError: the format or type is unknown, or cannot hold this model.
    """
    if format_ == "transformers":
        export_transformers(source, directory)
        return sorted(directory.iterdir())
    if format_ != "gguf":
        raise InvalidError(f"no format {format_!r}; use 'transformers' or 'gguf'")
    for known in get_args(GgufKind):
        if known == kind.upper():
            return _write_gguf(source, directory, known)
    raise InvalidError(f"no GGUF type {kind!r}; use one of {', '.join(get_args(GgufKind))}")


def _write_gguf(source: Checkpoint, directory: Path, kind: GgufKind) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    model, modelfile = directory / "model.gguf", directory / "Modelfile"
    export_gguf(source, model, kind)
    card = source.file.directory.card if isinstance(source, SouCheckpoint) else Card()
    tokenizer = source.tokenizer()
    stop = tokenizer.token(tokenizer.eos_ids[0]) if tokenizer.eos_ids else ""
    modelfile.write_text(ollama_modelfile(model.name, card, stop))
    return [model, modelfile]


def _fetched(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.jinja"]
    try:
        return Path(snapshot_download(repository, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UnavailableError(
            f"the hub gives no {repository!r}: {str(error)[:200]}; name a directory instead"
        ) from error


def _content(token: Any) -> str:
    """A special token in `tokenizer_config.json`: its text, or a table with it."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else ""
