"""Building a `.sou` file of what a text form says."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from arbiters.errors import InvalidError, NotFoundError
from soma_agents.language.checkpoint import Checkpoint
from soma_agents.language.hub.source import HUB, open_source
from soma_agents.language.lora import LoraAdapter
from soma_agents.language.sou.blocks import Kind
from soma_agents.language.sou.checkpoint import ADAPTER
from soma_agents.language.sou.convert import draft_of
from soma_agents.language.sou.layout import StoredAdapter
from soma_agents.language.sou.modelfile import Modelfile, parse
from soma_agents.language.sou.writer import Draft, Planned, write_sou
from soma_agents.language.source import SMOLLM2


def build(path: Path, target: Path, kind: Kind) -> None:
    """Write the file that a text form describes. Paths in it are relative to where it lies.

    Raises:
        NotFoundError: the text form, or something it names, is not there.
        InvalidError: names the line that is wrong, or what does not fit together.
    """
    if not path.is_file():
        raise NotFoundError(f"no text form {str(path)!r}")
    try:
        modelfile = parse(path.read_text(), name=str(path))
    except UnicodeDecodeError as error:
        raise InvalidError(f"{path} is no UTF-8: {error}") from None
    for source in modelfile.card.sources:
        if not (path.parent / source).exists():
            raise NotFoundError(f"{path}: RAG names {source!r}, which is not there")
    base = open_source(_named(modelfile.base, path))
    draft = replace(draft_of(base, kind), card=modelfile.card)
    write_sou(target, _adapted(draft, base, modelfile, path))


def _named(base: str, path: Path) -> str:
    if base == SMOLLM2 or base.startswith(HUB):
        return base
    return str(path.parent / Path(base).expanduser())


def _adapted(draft: Draft, base: Checkpoint, modelfile: Modelfile, path: Path) -> Draft:
    if not modelfile.adapter:
        return draft
    if draft.adapter is not None:
        raise InvalidError(
            f"{path}: {modelfile.base!r} has an adapter already; build from its base"
        )
    adapter = LoraAdapter.load(path.parent / modelfile.adapter, base.config)
    tensors = dict(draft.tensors)
    for name in adapter.config.targets:
        for side, matrices in (("a", adapter.a), ("b", adapter.b)):
            weight = matrices[name].detach()
            tensors[f"{ADAPTER}{name}.{side}"] = Planned(
                "F32", tuple(weight.shape), partial(lambda x: x, weight)
            )
    stored = StoredAdapter(
        rank=adapter.config.rank, alpha=adapter.config.alpha, targets=adapter.config.targets
    )
    return replace(draft, tensors=tensors, adapter=stored)
