"""A model as it lies in a file, whatever the format: sizes, tokenizer, and one tensor at a time."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from soma_agents.language.gguf_checkpoint import GgufCheckpoint
from soma_agents.language.linear import Linear
from soma_agents.language.sou.checkpoint import SouCheckpoint
from soma_agents.language.sou.header import is_sou
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.language.transformer import TransformerConfig


class Checkpoint(Protocol):
    """An open file with a model in it; tensors are named as in `Transformer.state_dict`."""

    @property
    def config(self) -> TransformerConfig:
        """Sizes; the file has tensors to bear them out."""
        ...

    def tokenizer(self) -> ChatTokenizer:
        """Text ↔ tokens."""
        ...

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """One tensor's values, of the shape that the configuration gives it."""
        ...

    def linear(self, name: str) -> Linear | None:
        """The product with a matrix as the file stores it; None if no kernel fits."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a `.sou` or a GGUF file.

    Raises:
        NotFoundError: there is no such file.
        CorruptError: the file is damaged or contradicts itself.
        InvalidError: it holds a model of another family, or cannot be what it says.
    """
    return SouCheckpoint(path) if path.is_file() and is_sou(path) else GgufCheckpoint(path)
