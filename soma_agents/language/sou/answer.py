"""One answer of a model file, under what the file itself says: parameters, system message, ACL."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arbiters.errors import InvalidError
from policies.personality import describe
from soma_agents.language.engine import Engine
from soma_agents.language.model import LanguageModel, load_model
from soma_agents.language.requests import GenerationRequest, Piece
from soma_agents.language.sampling import Sampling
from soma_agents.language.sou.card import Card
from soma_agents.language.sou.reader import SouFile


@dataclass(frozen=True, slots=True)
class Turn:
    """See `tokenizer.Message`."""

    role: str
    content: str


def voice(card: Card) -> str:
    """The system message: the file's own, then its personality in words."""
    traits = describe(card.personality) if card.personality else ""
    return "\n".join(part for part in (card.system, traits) if part)


def sampling_of(card: Card, tokens: int) -> Sampling:
    """The file's parameters, at most `tokens` long."""
    given: dict[str, Any] = card.parameters.model_dump(exclude_defaults=True)
    given["max_tokens"] = min(tokens, given.get("max_tokens", tokens))
    return Sampling(**given)


def asked(model: LanguageModel, prompt: str) -> str:
    """A user's question as the model's template writes it, under the file's system message.

    Raises:
        InvalidError: the model has no template.
    """
    turns = [Turn("system", voice(model.card))] if voice(model.card) else []
    return model.tokenizer.render([*turns, Turn("user", prompt)], add_generation_prompt=True)


async def answer(path: Path, prompt: str, *, user: str, tokens: int) -> AsyncIterator[str]:
    """The model's answer, piece by piece; what has no chat template goes on with the prompt.

    Raises:
        InvalidError: the file's ACL does not let `user` use it, or the prompt does not fit.
    """
    file = SouFile(path)
    card = file.directory.card
    file.close()
    if not card.allows(user):
        raise InvalidError(f"the ACL of {str(path)!r} does not let {user!r} use it")
    model = load_model(str(path))
    text = asked(model, prompt) if model.tokenizer.template else prompt
    request = GenerationRequest(tuple(model.tokenizer.encode(text)), sampling_of(card, tokens))
    engine = Engine(model, slots=1)
    engine.start()
    try:
        async for item in engine.generate(request):
            if isinstance(item, Piece):
                yield item.text
    finally:
        await engine.close()
