"""From any checkpoint, or a model in memory, to a `.sou` file in a given number format."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from arbiters.errors import InvalidError
from soma_agents.language.checkpoint import Checkpoint
from soma_agents.language.model import LanguageModel
from soma_agents.language.sou.blocks import BITS, Kind, fits
from soma_agents.language.sou.card import Card
from soma_agents.language.sou.checkpoint import ADAPTER, PERSONALITY, SouCheckpoint
from soma_agents.language.sou.writer import Draft, Planned, write_sou
from soma_agents.language.transformer import TransformerConfig, weight_shapes

KINDS: tuple[str, ...] = get_args(Kind)
OUTER = ("embedding.weight", "head.weight")
"""Every token passes through them: an error here costs more than anywhere else."""
SMALL = ("positions.weight", "router.weight")


def kind_for(kind: Kind, name: str, shape: tuple[int, ...]) -> Kind:
    """How a tensor is stored in a file of `kind`.

    Vectors stay fp32, they weigh nothing; embeddings and head of a Q4 or Q2 file are Q5; learnt
    positions, routers and what has no whole groups in a row are at least F16.
    """
    if len(shape) == 1:
        return "F32"
    if name.endswith(SMALL) and kind in BITS:
        return "F16"
    wanted: Kind = "Q5" if kind in {"Q4", "Q2"} and name in OUTER else kind
    return wanted if fits(wanted, shape) else "F16"


def planned(
    config: TransformerConfig, kind: Kind, fetch: Callable[[str], Tensor]
) -> dict[str, Planned]:
    """Every weight of a model, to be stored as `kind`; `fetch` gives one by its name in fp32."""
    return {
        name: Planned(kind_for(kind, name, shape), shape, partial(fetch, name))
        for name, shape in weight_shapes(config).items()
    }


def save_model(
    path: Path,
    model: LanguageModel,
    kind: Kind,
    *,
    card: Card | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model in memory as a `.sou` file.

    Raises:
        InvalidError: a weight is NaN or infinite.
        StorageFullError: the disk is full.
    """
    weights = model.transformer.state_dict()
    write_sou(
        path,
        Draft(
            model.config,
            planned(model.config, kind, weights.__getitem__),
            tokenizer=model.tokenizer.to_json(),
            template=model.tokenizer.template,
            eos_ids=model.tokenizer.eos_ids,
            card=card or Card(),
            metadata={"weights": kind, **(metadata or {})},
        ),
    )


def convert(source: Checkpoint, target: Path, kind: Kind) -> None:
    """Write a checkpoint as a `.sou` file; of a `.sou` file all else is kept.

    Raises:
        InvalidError: a weight is NaN or infinite, or beyond the range of F16.
        StorageFullError: the disk is full.
    """
    write_sou(target, draft_of(source, kind))


def draft_of(source: Checkpoint, kind: Kind) -> Draft:
    """What `convert` writes."""
    if isinstance(source, SouCheckpoint):
        return _again(source, kind)
    tokenizer = source.tokenizer()
    return Draft(
        source.config,
        planned(source.config, kind, lambda name: source.tensor(name, torch.float32)),
        tokenizer=tokenizer.to_json(),
        template=tokenizer.template,
        eos_ids=tokenizer.eos_ids,
        metadata={"weights": kind},
    )


def _again(source: SouCheckpoint, kind: Kind) -> Draft:
    file, directory = source.file, source.file.directory
    tensors = planned(source.config, kind, file.tensor)
    for name, piece in file.tensors.items():
        if name.startswith((ADAPTER, PERSONALITY)):
            tensors[name] = Planned(piece.kind, piece.shape, partial(file.tensor, name))
    return Draft(
        source.config,
        tensors,
        tokenizer=file.text("tokenizer"),
        template=file.text("template"),
        eos_ids=directory.eos_ids,
        card=directory.card,
        metadata=directory.metadata | {"weights": kind},
        adapter=directory.adapter,
    )


def kind_named(name: str) -> Kind:
    """The number format that a user names, in any case.

    Raises:
        InvalidError: there is no such format.
    """
    for kind in get_args(Kind):
        if kind == name.upper():
            return kind
    raise InvalidError(f"no number format {name!r}; use one of {', '.join(KINDS)}")
