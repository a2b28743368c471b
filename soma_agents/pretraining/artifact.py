"""What a run leaves: a `.sou` file with weights, sizes, vocabulary and lineage."""

from collections.abc import Iterator, Mapping
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


class StoredWeights(Mapping[str, Tensor]):
    """The weights of a `.sou` file in float32, each read when it is asked for."""

    def __init__(self, checkpoint: SouCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._names = weight_shapes(checkpoint.config)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._checkpoint.tensor(name, torch.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def load_weights(path: Path) -> tuple[TransformerConfig, StoredWeights, Vocabulary]:
    """Sizes, weights and vocabulary of a `.sou` file, to go on learning with.

    Raises:
        NotFoundError, InvalidError, CorruptError: as `SouCheckpoint` says.
    """
    checkpoint = SouCheckpoint(path)
    vocabulary = Vocabulary(checkpoint.file.text("tokenizer"))
    return checkpoint.config, StoredWeights(checkpoint), vocabulary
