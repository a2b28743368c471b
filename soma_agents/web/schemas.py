"""What clients send to `/v1`: OpenAI's requests, with everything SOMA cannot do refused clearly."""

from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from arbiters.events import ChatMessage
from soma_agents.language.sampling import Sampling
from soma_agents.language.sou.card import Parameters
from soma_agents.web.errors import ParameterError

MAX_STOPS = 16
SEED_LIMIT = 2**63
TEMPERATURE, TOP_P = 0.2, 0.9
"""When a request says neither: as SmolLM2's authors advise."""
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Request(BaseModel):
    """Strict about types; fields that SOMA does not know are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Body(Request):
    """A whole request body."""

    @model_validator(mode="before")
    @classmethod
    def _is_unicode(cls, value: Any) -> Any:
        """JSON can spell half a surrogate pair, which no text can hold."""
        waiting = [value]
        while waiting:
            match waiting.pop():
                case str(text):
                    _check_text(text)
                case list(items):
                    waiting += items
                case dict(fields):
                    waiting += [*fields, *fields.values()]
                case _:
                    pass
        return value


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text has half a character at {error.start}: {error.reason}") from None


class TextPart(Request):
    """A part of a message's content."""

    type: str
    text: str | None = None


class Message(Request):
    """One message of a chat."""

    role: str
    content: str | list[TextPart]

    def spoken(self, index: int) -> ChatMessage:
        """The message as SOMA keeps it.

        Raises:
            ParameterError: a role or kind of content that SOMA has no use for.
        """
        where = f"messages.{index}"
        role = "system" if self.role == "developer" else self.role
        if role not in {"system", "user", "assistant"}:
            raise ParameterError(
                f"{where}.role is {self.role!r}; use 'system', 'user' or 'assistant'",
                param=f"{where}.role",
            )
        return ChatMessage(role=role, content=self._text(where))  # type: ignore[arg-type]

    def _text(self, where: str) -> str:
        if isinstance(self.content, str):
            return self.content
        for part in self.content:
            if part.type != "text" or part.text is None:
                raise ParameterError(
                    f"{where}.content has a part of type {part.type!r}; SOMA reads only text",
                    param=f"{where}.content",
                )
        return "".join(part.text or "" for part in self.content)


class StreamOptions(Request):
    """What else a stream carries."""

    include_usage: bool = False


class SamplingRequest(Body):
    """How to choose tokens; the names of OpenAI, and of vLLM where OpenAI has none."""

    model: str = "soma"
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=-SEED_LIMIT, lt=SEED_LIMIT)] | None = None
    stop: str | list[str] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: int | None = None
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    logit_bias: dict[str, Any] | None = None

    def sampling(
        self, own: Parameters, *, max_tokens: int, logprobs: int | None = None
    ) -> Sampling:
        """The engine's settings for this request.

        What it leaves open the model's `own` parameters say, then SOMA's defaults, `max_tokens`
        among them.

        Raises:
            ParameterError: names the field that is not accepted.
        """
        self._refuse_unsupported()
        temperature = _or(self.temperature, own.temperature)
        top_p = _or(self.top_p, own.top_p)
        if temperature is None and top_p is None:
            temperature, top_p = TEMPERATURE, TOP_P
        return Sampling(
            temperature=_or(temperature, 1.0),
            top_p=_or(top_p, 1.0),
            top_k=_or(self.top_k, own.top_k, 0),
            min_p=_or(self.min_p, own.min_p, 0.0),
            repetition_penalty=_or(self.repetition_penalty, own.repetition_penalty, 1.0),
            seed=_or(self.seed, own.seed),
            stop=own.stop if self.stop is None else self._stops(),
            max_tokens=_or(self.max_tokens, own.max_tokens, max_tokens),
            logprobs=logprobs,
        )

    def _refuse_unsupported(self) -> None:
        if self.n not in {None, 1}:
            raise ParameterError(f"n is {self.n}; SOMA gives one answer a request", param="n")
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise ParameterError(
                    f"{name} is not supported; use repetition_penalty or leave it out", param=name
                )

    def _stops(self) -> tuple[str, ...]:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > MAX_STOPS or "" in stops:
            raise ParameterError(
                f"stop must be up to {MAX_STOPS} strings that are not empty", param="stop"
            )
        return stops


def _or(*values: Any) -> Any:
    """The first that was said."""
    return next((value for value in values if value is not None), None)


class ChatRequest(SamplingRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None

    def spoken(self) -> list[ChatMessage]:
        """The transcript; its last message is the user's new one.

        Raises:
            ParameterError: names the message that is not accepted.
        """
        messages = [message.spoken(index) for index, message in enumerate(self.messages)]
        if messages[-1].role != "user" or not messages[-1].content.strip():
            raise ParameterError(
                "the last message must be the user's and not empty", param="messages"
            )
        return messages

    def chat_sampling(self, own: Parameters, default_tokens: int) -> Sampling:
        """The engine's settings; see `sampling`.

        Raises:
            ParameterError: names the field that is not accepted.
        """
        for name in ("tools", "functions"):
            if getattr(self, name):
                raise ParameterError(f"{name} are not supported; leave them out", param=name)
        if self.response_format and self.response_format.get("type") != "text":
            raise ParameterError(
                "response_format must be {'type': 'text'}", param="response_format"
            )
        if self.modalities not in (None, ["text"]):
            raise ParameterError("modalities must be ['text']", param="modalities")
        if self.top_logprobs is not None and not self.logprobs:
            raise ParameterError("top_logprobs needs logprobs: true", param="top_logprobs")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        found = self.sampling(own, max_tokens=default_tokens, logprobs=logprobs)
        return replace(found, max_tokens=self.max_completion_tokens or found.max_tokens)


class CompletionRequest(SamplingRequest):
    """`POST /v1/completions`."""

    prompt: str | list[str]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None

    def text(self) -> str:
        """The one prompt.

        Raises:
            ParameterError: none, several, or an empty one.
        """
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1 or not prompts[0]:
            raise ParameterError("prompt must be one text that is not empty", param="prompt")
        return prompts[0]

    def completion_sampling(self, own: Parameters, default_tokens: int) -> Sampling:
        """The engine's settings; see `sampling`.

        Raises:
            ParameterError: names the field that is not accepted.
        """
        for name in ("suffix", "echo"):
            if getattr(self, name):
                raise ParameterError(f"{name} is not supported; leave it out", param=name)
        if self.best_of not in {None, 1}:
            raise ParameterError("best_of is not supported; leave it out", param="best_of")
        return self.sampling(own, max_tokens=default_tokens, logprobs=self.logprobs)


class ReasonRequest(SamplingRequest):
    """`POST /api/reason`."""

    message: Annotated[str, Field(min_length=1)]
    conversation: Annotated[str, Field(min_length=1, max_length=128)] | None = None
