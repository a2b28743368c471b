"""What a run leaves: a `.sou` file with weights, sizes, vocabulary and lineage."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from soma_agents.language.architecture import TransformerConfig
from soma_agents.language.sou.card import Card
from soma_agents.language.sou.checkpoint import SouCheckpoint
from soma_agents.language.sou.convert import planned
from soma_agents.language.sou.writer import Draft, write_sou
from soma_agents.language.transformer import weight_shapes
from soma_agents.pretraining.vocabulary import TEMPLATE, Vocabulary


def save_model(
    path: Path,
    config: TransformerConfig,
    weights: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    lineage: Mapping[str, str],
    *,
    card: Card | None = None,
) -> Path:
    """Write the file whole or not at all, weights in bfloat16; `card` says how it is to be used.

    Raises:
        InvalidError: a weight is NaN or infinite.
        StorageFullError: the disk is full; what was there stands.
    """
    draft = Draft(
        config,
        planned(config, "BF16", weights.__getitem__),
        tokenizer=vocabulary.source,
        template=TEMPLATE,
        eos_ids=vocabulary.ends,
        card=card or Card(),
        metadata={"weights": "BF16", **lineage},
    )
    write_sou(path, draft)
    return path


def load_weights(path: Path) -> tuple[TransformerConfig, dict[str, Tensor], Vocabulary]:
    """Sizes, weights in float32 and vocabulary of a `.sou` file, to go on learning with.

    Raises:
        NotFoundError, InvalidError, CorruptError: as `SouCheckpoint` says.
    """
    checkpoint = SouCheckpoint(path)
    try:
        names = weight_shapes(checkpoint.config)
        weights = {name: checkpoint.tensor(name, torch.float32).clone() for name in names}
        return checkpoint.config, weights, Vocabulary(checkpoint.file.text("tokenizer"))
    finally:
        checkpoint.close()
