"""Text ↔ tokens, and the chat template: from a GGUF file's metadata or a `tokenizer.json`."""

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from arbiters.errors import CorruptError, InvalidError

CONTROL = 3
"""Token type in the file of those that structure a prompt and are never part of a word."""

BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
"""How SentencePiece writes a token that is one byte."""

INVISIBLE = "\u200b"
"""Zero-width space: breaks a control token that a person wrote out, and looks the same."""

BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
PRE_TOKENIZERS: dict[str, pre_tokenizers.PreTokenizer] = {
    "gpt-2": BYTE_LEVEL,
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]  # pyright: ignore[reportArgumentType]
    ),
}
"""How text is cut into words, by the name that stands in the file."""


class Message(Protocol):
    """One turn of a conversation."""

    @property
    def role(self) -> str:
        """Of system, user, assistant."""
        ...

    @property
    def content(self) -> str:
        """What was said."""
        ...


class ChatTokenizer:
    """Text ↔ token ids, and conversations → the text a model was tuned on.

    Raises:
        CorruptError: the metadata does not describe a byte-level BPE with a chat template.
        InvalidError: text is cut into words in a way this program does not know.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        tokens = _require(metadata, "tokenizer.ggml.tokens", list)
        types = _require(metadata, "tokenizer.ggml.token_type", list)
        merges = _require(metadata, "tokenizer.ggml.merges", list)
        control = {i: token for i, token in enumerate(tokens) if types[i : i + 1] == [CONTROL]}
        bpe = _byte_level_bpe(tokens, merges, list(control.values()))
        bpe.pre_tokenizer = _pre_tokenizer(_require(metadata, "tokenizer.ggml.pre", str))
        meanings = [_bytes(token) if i not in control else b"" for i, token in enumerate(tokens)]
        eos = _require(metadata, "tokenizer.ggml.eos_token_id", int)
        template = _require(metadata, "tokenizer.chat_template", str)
        self._set_up(bpe, meanings, tuple(control.values()), (eos,), template)

    @classmethod
    def from_json(
        cls, text: str, *, template: str, eos_ids: Sequence[int], most_tokens: int
    ) -> "ChatTokenizer":
        """From a Hugging Face `tokenizer.json`; ids reach `most_tokens` at most.

        Without a template it encodes and decodes, and refuses to render conversations.

        Raises:
            CorruptError: it is damaged, or does not fit the model.
        """
        bpe, meanings, control = read_tokenizer(text, most_tokens)
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(bpe, meanings, control, tuple(eos_ids), template)  # noqa: SLF001 - its own
        return tokenizer

    def _set_up(
        self,
        bpe: Tokenizer,
        meanings: list[bytes],
        control: tuple[str, ...],
        eos_ids: tuple[int, ...],
        template: str,
    ) -> None:
        self._bpe = bpe
        self._bytes = meanings
        self._control = control
        if broken := [eos for eos in eos_ids if not 0 <= eos < len(meanings)]:
            raise CorruptError(
                f"end token {broken[0]!r} is not among the model's {len(meanings)} tokens"
            )
        self.eos_ids = eos_ids
        self.template = template
        self._template = _template(template)

    def to_json(self) -> str:
        """A Hugging Face `tokenizer.json`."""
        return self._bpe.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        """Token ids; control tokens written in the text (`<|im_end|>`) become those tokens."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, control tokens left out; broken UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for: UTF-8, perhaps a part of a character; empty for control.

        Embeddings often have a few rows more than there are tokens: those stand for nothing.
        """
        return self._bytes[token] if token < len(self._bytes) else b""

    def token(self, token: int) -> str:
        """A token as it is written in the vocabulary."""
        return self._bpe.id_to_token(token) or ""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The conversation as the model's chat template writes it.

        A control token that a person wrote out is broken, so that nobody can close their turn
        and speak as somebody else.

        Raises:
            InvalidError: the template refuses these messages.
        """
        if not self.template:
            raise InvalidError("the model has no chat template; it only continues text")
        turns = [
            {"role": message.role, "content": self.defuse(message.content)} for message in messages
        ]
        try:
            return self._template.render(
                messages=turns, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise InvalidError(f"the chat template refuses the messages: {error}") from error

    def stream_decoder(self) -> "StreamDecoder":
        """A decoder for one reply."""
        return StreamDecoder(self)

    def defuse(self, content: str) -> str:
        """`content` with every control token that it spells out broken by a zero-width space."""
        for token in self._control:
            content = content.replace(token, token[0] + INVISIBLE + token[1:])
        return content


class StreamDecoder:
    """Token ids in, new text out, a character only once all its bytes are there."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Text that `token` completes, perhaps none."""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What is left at the end: U+FFFD if a character stayed incomplete."""
        return self._utf8.decode(b"", final=True)


def _byte_level_bpe(tokens: list[Any], merges: list[Any], control: list[str]) -> Tokenizer:
    try:
        vocabulary = {str(token): i for i, token in enumerate(tokens)}
        pairs = [tuple(str(merge).split(" ")) for merge in merges]
        bpe = Tokenizer(models.BPE(vocabulary, pairs))  # pyright: ignore[reportArgumentType]
    except Exception as error:  # tokenizers raises plain Exception
        raise CorruptError(f"the model's vocabulary is damaged: {error}") from error
    if len(vocabulary) != len(tokens):
        raise CorruptError("the model's vocabulary is damaged: a token stands in it twice")
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return bpe


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    if name not in PRE_TOKENIZERS:
        raise InvalidError(
            f"the model cuts text into words as {name!r}; known are {sorted(PRE_TOKENIZERS)}"
        )
    return PRE_TOKENIZERS[name]


def _template(source: str) -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise CorruptError(f"the model's chat template is damaged: {error}") from error


def _alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte → the byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {
        chr(256 + place): byte for place, byte in enumerate(hidden)
    }


ALPHABET = _alphabet()


def read_tokenizer(text: str, most_tokens: int) -> tuple[Tokenizer, list[bytes], tuple[str, ...]]:
    """A `tokenizer.json`: the tokenizer, what each token stands for, and the control tokens.

    Tokens are written in the byte-level alphabet, or, as SentencePiece does, with "▁" for a
    space and "<0x0A>" for a byte; which of them the file's decoder says.

    Raises:
        CorruptError: it is damaged, or an id is not below `most_tokens`.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
        byte_level = "ByteLevel" in str(tokenizer.decoder)
    except Exception as error:  # tokenizers raises plain Exception
        raise CorruptError(f"the model's tokenizer is damaged: {str(error)[:200]}") from error
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values(), default=-1) + 1
    if not 0 < size <= most_tokens:
        raise CorruptError(f"the tokenizer has ids up to {size - 1!r}, the model {most_tokens!r}")
    meanings = [b""] * size
    added = tokenizer.get_added_tokens_decoder()
    for token, i in vocabulary.items():
        if i not in added:
            meanings[i] = _bytes(token) if byte_level else _piece_bytes(token)
    for i, token in added.items():
        meanings[i] = b"" if token.special else token.content.encode()
    control = tuple(token.content for _, token in sorted(added.items()) if token.special)
    return tokenizer, meanings, control


def _piece_bytes(token: str) -> bytes:
    if (found := BYTE_PIECE.fullmatch(token)) is not None:
        return bytes([int(found[1], 16)])
    return token.replace("▁", " ").encode()


def _bytes(token: str) -> bytes:
    try:
        return bytes(ALPHABET[letter] for letter in token)
    except KeyError:
        raise CorruptError(f"token {token!r} is not written in the byte-level alphabet") from None


def _require(metadata: Mapping[str, Any], key: str, kind: type) -> Any:
    value = metadata.get(key)
    if not isinstance(value, kind):
        raise CorruptError(f"the model's {key} is {str(value)[:40]!r}, not a {kind.__name__}")
    return value
