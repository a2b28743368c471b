"""What a run leaves: a sealed folder with weights, sizes and vocabulary."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from arbiters.errors import CorruptError, InvalidError, NotFoundError
from soma_agents.language.model import LanguageModel
from soma_agents.language.transformer import Transformer, TransformerConfig
from soma_agents.pretraining.vocabulary import Vocabulary
from soma_agents.storage.files import (
    MANIFEST,
    make_directory,
    put_in_place,
    room_for,
    sha256_file,
    verify_manifest,
    write_atomic,
    write_manifest,
)

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


def save_model(
    directory: Path,
    config: TransformerConfig,
    weights: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    facts: Mapping[str, Any],
) -> Path:
    """Write the folder whole or not at all; weights in bfloat16, named as in `state_dict`.

    Raises:
        StorageFullError: the disk is full; what was there stands.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    make_directory(directory.parent)
    with room_for(directory.parent):
        shutil.rmtree(partial, ignore_errors=True)
        make_directory(partial)
        tensors = {name: w.to(torch.bfloat16).contiguous() for name, w in weights.items()}
        save_file(tensors, partial / WEIGHTS)
        write_atomic(partial / CONFIG, json.dumps(asdict(config), indent=1).encode())
        write_atomic(partial / TOKENIZER, vocabulary.source.encode())
        write_manifest(partial, facts)
        put_in_place(partial, directory)
    return directory


def load_weights(directory: Path) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """Sizes and weights in a folder that `save_model` wrote.

    Raises:
        NotFoundError: there is none.
        CorruptError: it is damaged.
    """
    if not (directory / MANIFEST).is_file():
        raise NotFoundError(f"{str(directory)!r} holds no model; train one with `soma pretrain`")
    verify_manifest(directory)
    try:
        config = TransformerConfig(**json.loads((directory / CONFIG).read_text()))
        return config, load_file(directory / WEIGHTS)
    except InvalidError as error:
        raise CorruptError(f"{str(directory)!r}: {error}") from None
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CorruptError(f"{str(directory)!r} holds no whole model: {error}") from None


def load_trained(directory: Path, *, dtype: torch.dtype = torch.bfloat16) -> LanguageModel:
    """The model in a folder that `save_model` wrote, ready for the engine.

    Raises:
        NotFoundError: there is none.
        CorruptError: it is damaged, or vocabulary and weights do not belong together.
    """
    config, weights = load_weights(directory)
    try:
        weights = {name: weight.to(dtype) for name, weight in weights.items()}
        transformer = Transformer.from_weights(config, weights)
    except RuntimeError as error:
        raise CorruptError(f"{str(directory)!r} holds no whole model: {error}") from None
    vocabulary = Vocabulary.load(directory / TOKENIZER)
    if vocabulary.size != config.vocab_size:
        raise CorruptError(
            f"{str(directory)!r}: the vocabulary has {vocabulary.size} tokens, the weights "
            f"{config.vocab_size}; they do not belong together"
        )
    identity = f"base-{sha256_file(directory / WEIGHTS)[:16]}"
    name = str(json.loads((directory / MANIFEST).read_text()).get("name", directory.name))
    return LanguageModel(identity, name, config, transformer, vocabulary.chat())
