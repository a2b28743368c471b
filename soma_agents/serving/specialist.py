"""A specialist: a persona over a model. From a conversation to a prompt, with all that shaped it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from arbiters.errors import InvalidError
from arbiters.events import ChatMessage
from policies.personality import DEFAULTS, around, describe
from soma_agents.language.model import LanguageModel
from soma_agents.language.prefix import common_prefix
from soma_agents.language.requests import GenerationRequest
from soma_agents.language.sampling import Sampling
from soma_agents.persona.voice import as_soma

ANSWER_SHARE = 4
"""A quarter of the context at most is kept free for an answer when old turns have to go."""
TURN_TOKENS = 16
"""What the template puts around a message, at most."""
MOST_CHARACTERS_PER_TOKEN = 64
"""Longer texts are refused before they are counted, which would take seconds."""


class ContextLengthError(InvalidError):
    """A prompt leaves no room for an answer. What a client sends is never cut."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the person who asks: sentences about them, and SOMA's personality to them."""

    facts: tuple[str, ...] = ()
    personality: Mapping[str, float] | None = None
    """Its dimensions; None: nobody could say."""
    said: tuple[str, ...] = ()
    """What they said in other conversations that fits what they ask now."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt that fits, and the hash of everything but the conversation that shaped it."""

    request: GenerationRequest
    config_hash: str


@dataclass(frozen=True, slots=True)
class _System:
    """The system message, and as it is whatever is asked."""

    whole: str
    stable: ChatMessage


class Specialist:
    """One role of SOMA: it turns what was said into a request to the engine."""

    def __init__(self, model: LanguageModel, *, name: str = "personal") -> None:
        self.name = name
        self.model = model

    def chat(
        self,
        messages: Sequence[ChatMessage],
        sampling: Sampling,
        *,
        adapter: str | None,
        known: Known,
        tenant: str,
    ) -> Prepared:
        """A request for the next turn of a conversation.

        Raises:
            ContextLengthError: the conversation is longer than the model's context.
        """
        bare = self._turns(messages, replace(known, said=()))
        turns = self._turns(messages, known) if known.said else bare
        text = self._rendered(turns)
        if known.said and not self._leaves_room(text, sampling):
            turns, text = bare, self._rendered(bare)
        system = _System(whole=turns[0].content, stable=bare[0])
        return self._prepare(text, sampling, adapter=adapter, tenant=tenant, system=system)

    def _rendered(self, turns: Sequence[ChatMessage]) -> str:
        return self.model.tokenizer.render(turns, add_generation_prompt=True)

    def _leaves_room(self, text: str, sampling: Sampling) -> bool:
        """Whether an answer fits behind a prompt as well as behind a long conversation."""
        context = self.model.config.context
        room = context - min(sampling.max_tokens, context // ANSWER_SHARE)
        return len(text) <= room or (
            len(text) <= context * MOST_CHARACTERS_PER_TOKEN
            and len(self.model.tokenizer.encode(text)) <= room
        )

    def _turns(self, messages: Sequence[ChatMessage], known: Known) -> list[ChatMessage]:
        """What changes with every question comes last, so that the rest stays a known prefix."""
        about = f"About the user: {' '.join(known.facts)}" if known.facts else ""
        said = [
            f'In an earlier conversation the user said: "{sentence}"' for sentence in known.said
        ]
        own = self.model.card.system
        return as_soma(messages, about, self._traits(known), *said, system=own)

    def _traits(self, known: Known) -> str:
        """The personality in words: the person's, around the set-points of the model."""
        points = self.model.card.personality
        if known.personality is None and not points:
            return ""
        return describe(around(points, known.personality or DEFAULTS))

    def newest(
        self, before: Sequence[ChatMessage], message: ChatMessage, sampling: Sampling, known: Known
    ) -> list[ChatMessage]:
        """The newest turns of a long conversation that leave room for a message and its answer."""
        context, encode = self.model.config.context, self.model.tokenizer.encode
        bare = self._turns([message], replace(known, said=()))
        room = context - min(sampling.max_tokens, context // ANSWER_SHARE)
        room -= sum(len(encode(turn.content)) + TURN_TOKENS for turn in bare)
        first = len(before)
        while first and (room := room - len(encode(before[first - 1].content)) - TURN_TOKENS) >= 0:
            first -= 1
        while 0 < first < len(before) and before[first].role != "user":
            first += 1  # a conversation begins with a question
        return list(before[first:])

    def continuation(
        self, text: str, sampling: Sampling, *, adapter: str | None, tenant: str
    ) -> Prepared:
        """A request to go on with a bare text, without template, persona or memory.

        Raises:
            ContextLengthError: the text is longer than the model's context.
        """
        return self._prepare(text, sampling, adapter=adapter, tenant=tenant, system=None)

    def _prepare(
        self,
        text: str,
        sampling: Sampling,
        *,
        adapter: str | None,
        tenant: str,
        system: "_System | None",
    ) -> Prepared:
        context = self.model.config.context
        if len(text) > context * MOST_CHARACTERS_PER_TOKEN:
            raise ContextLengthError(
                f"the prompt has {len(text)} characters, far more than the {context} tokens of "
                "the model's context; send fewer or shorter messages"
            )
        prompt = tuple(self.model.tokenizer.encode(text))
        if len(prompt) >= context:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, the model's context holds {context} "
                "with the answer; send fewer or shorter messages"
            )
        room = min(sampling.max_tokens, context - len(prompt))
        shape = {
            "base": self.model.id,
            "adapter": adapter,
            "specialist": self.name,
            "system": system.whole if system else "",
            "sampling": asdict(sampling),
        }
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
        request = GenerationRequest(
            prompt=prompt,
            sampling=replace(sampling, max_tokens=room),
            adapter=adapter,
            tenant=tenant,
            shared=self._shared(prompt, system.stable) if system else 0,
        )
        return Prepared(request=request, config_hash=digest[:16])

    def _shared(self, prompt: Sequence[int], system: ChatMessage) -> int:
        """How many tokens a prompt has in common with others under this system message."""
        text = self.model.tokenizer.render([system], add_generation_prompt=False)
        return common_prefix((self.model.tokenizer.encode(text), prompt))
