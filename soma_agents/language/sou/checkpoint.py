"""A model in a `.sou` file, ready to be loaded: checked against its own sizes."""

from pathlib import Path

import torch
from torch import Tensor

from arbiters.errors import InvalidError
from soma_agents.language.architecture import SITES, TransformerConfig
from soma_agents.language.linear import Linear, block_linear
from soma_agents.language.sou.blocks import BITS
from soma_agents.language.sou.layout import StoredAdapter
from soma_agents.language.sou.reader import SouFile
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.language.transformer import weight_shapes

ADAPTER = "adapter."
"""Names of an adapter's matrices begin so: `adapter.q_proj.a` (layers, rank, inputs)."""
PERSONALITY = "personality."
"""Names of personality vectors begin so."""


class SouCheckpoint:
    """See `Checkpoint`. An adapter in the file is added to the weights that it corrects.

    Raises:
        NotFoundError: there is no such file.
        InvalidError: it is no sound `.sou` file, or lacks tensors that its sizes ask for.
        CorruptError: something in it was changed.
    """

    def __init__(self, path: Path) -> None:
        self.file = SouFile(path)
        self.config: TransformerConfig = self.file.directory.config
        self.adapter = self.file.directory.adapter
        self._check_shapes()

    def close(self) -> None:
        """Unmap the file, unless tensors still share its memory."""
        self.file.close()

    def tokenizer(self) -> ChatTokenizer:
        """Text ↔ tokens."""
        if not (text := self.file.text("tokenizer")):
            raise InvalidError(f"model file {str(self.file.path)!r} has no tokenizer")
        return ChatTokenizer.from_json(
            text,
            template=self.file.text("template"),
            eos_ids=self.file.directory.eos_ids,
            most_tokens=self.config.vocab_size,
        )

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor named as in `Transformer.state_dict`, corrected by the adapter, if any."""
        if not self._corrected(name):
            return self.file.tensor(name, dtype)
        return (self.file.tensor(name) + self._delta(name)).to(dtype)

    def linear(self, name: str) -> Linear | None:
        """The product with a matrix as the file stores it; None where it is not that alone."""
        if name == "head.weight" and self.config.tied_embeddings:
            name = "embedding.weight"
        if self._corrected(name):
            return None
        blocks = self.file.blocks(name)
        return None if blocks is None else block_linear(blocks, BITS[self.file.tensors[name].kind])

    def _corrected(self, name: str) -> bool:
        site = name.split(".")[-2]
        return self.adapter is not None and not set(self.adapter.targets).isdisjoint(
            SITES.get(site, ())
        )

    def _delta(self, name: str) -> Tensor:
        """B A · alpha / rank of the projections in a fused matrix, above each other."""
        _, layer, site, _ = name.split(".")
        parts: list[Tensor] = []
        for projection in SITES[site]:
            if self.adapter is None or projection not in self.adapter.targets:
                parts.append(torch.zeros(self.config.shape(projection)))
                continue
            down, up = (self.file.tensor(f"{ADAPTER}{projection}.{x}")[int(layer)] for x in "ab")
            parts.append(up @ down * (self.adapter.alpha / self.adapter.rank))
        return torch.cat(parts)

    def _check_shapes(self) -> None:
        path, stored = str(self.file.path), self.file.tensors
        # Checked first: the names of a billion layers would not fit into memory.
        if self.config.layers > len(stored):
            raise InvalidError(
                f"model file {path!r} declares {self.config.layers!r} layers "
                f"and holds {len(stored)!r} tensors"
            )
        wanted = weight_shapes(self.config) | self._adapter_shapes(self.adapter)
        for name, shape in wanted.items():
            found = stored[name].shape if name in stored else None
            if found != shape:
                raise InvalidError(
                    f"model file {path!r}: tensor {name!r} is {found!r}, its sizes say {shape!r}"
                )
        for name in stored.keys() - wanted.keys():
            if not name.startswith(PERSONALITY):
                raise InvalidError(f"model file {path!r} has unknown tensor {name!r}")

    def _adapter_shapes(self, adapter: StoredAdapter | None) -> dict[str, tuple[int, ...]]:
        if adapter is None:
            return {}
        known = [name for site in self.config.sites for name in SITES[site]]
        if unknown := set(adapter.targets) - set(known):
            raise InvalidError(f"the adapter corrects {min(unknown)!r}; known: {known!r}")
        shapes: dict[str, tuple[int, ...]] = {}
        for name in adapter.targets:
            outputs, inputs = self.config.shape(name)
            shapes[f"{ADAPTER}{name}.a"] = (self.config.layers, adapter.rank, inputs)
            shapes[f"{ADAPTER}{name}.b"] = (self.config.layers, outputs, adapter.rank)
        return shapes
