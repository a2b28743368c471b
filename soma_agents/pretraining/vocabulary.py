"""A byte-level BPE of one's own: learnt with `tokenizers`, kept as its tokenizer.json."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arbiters.errors import CorruptError, InvalidError, NotFoundError
from soma_agents.language.tokenizer import ALPHABET, ChatTokenizer

END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END, TURN, TURN_END)
"""The end of a document, and ChatML's marks; they have the last ids."""

SAMPLE = 24_000_000
"""Characters that a vocabulary is learnt from: more changes few of its words."""

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Vocabulary:
    """Text → token ids, for packing a corpus.

    Raises:
        CorruptError: `source` is no tokenizer.json of a byte-level BPE.
    """

    def __init__(self, source: str) -> None:
        from tokenizers import Tokenizer

        self.source = source
        try:
            self._bpe = Tokenizer.from_str(source)
            content = json.loads(source)
            self._control = {t["content"]: t["id"] for t in content["added_tokens"]}
            self._words: dict[str, int] = content["model"]["vocab"]
            self.end: int = self._control[END]
            self.turn_end: int = self._control[TURN_END]
        except Exception as error:  # noqa: BLE001 — tokenizers raises it plain
            raise CorruptError(
                f"the vocabulary is no tokenizer.json of SOMA's: {error!r}"
            ) from None
        self.size = self._bpe.get_vocab_size()

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> "Vocabulary":
        """Learn `size` tokens, the special ones counted.

        Raises:
            InvalidError: `size` is below what bytes need, or more than the texts hold.
        """
        from tokenizers import Tokenizer, decoders, models, trainers

        least = len(ALPHABET) + len(SPECIAL)
        if size < least:
            raise InvalidError(f"vocabulary of {size!r} is too small; bytes alone need {least}")
        bpe = Tokenizer(models.BPE(ignore_merges=True))
        bpe.pre_tokenizer = _words_of_gpt2()
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size - len(SPECIAL),
            show_progress=False,
            initial_alphabet=sorted(ALPHABET),
            special_tokens=[],
        )
        bpe.train_from_iterator(_sample(texts), trainer)
        if (found := bpe.get_vocab_size() + len(SPECIAL)) < size:
            raise InvalidError(
                f"vocabulary of {size!r} is more than this corpus supports: it gives {found}; "
                f"use --vocab {found} or a smaller preset, or bring more text"
            )
        bpe.add_special_tokens(list(SPECIAL))
        return cls(bpe.to_str())

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read a tokenizer.json.

        Raises:
            NotFoundError: it is not there.
            CorruptError: it is damaged.
        """
        try:
            return cls(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotFoundError(f"no vocabulary at {str(path)!r}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise CorruptError(f"vocabulary {str(path)!r} cannot be read: {error}") from None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; the marks of a conversation in it become those tokens."""
        return [e.ids for e in self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)]

    def tokens(self) -> list[str]:
        """Tokens as they are written in the file, by id."""
        named = {i: t for t, i in (self._words | self._control).items()}
        return [named[i] for i in range(self.size)]

    def lengths(self) -> npt.NDArray[np.int64]:
        """(V,) bytes of text that each token stands for; the special ones stand for none."""
        return np.array([0 if t in self._control else len(t) for t in self.tokens()])

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a reply: that of a turn, that of a document."""
        return (self.turn_end, self.end)

    def chat(self) -> ChatTokenizer:
        """The same as the engine knows it."""
        return ChatTokenizer.from_json(
            self.source, template=TEMPLATE, eos_ids=self.ends, most_tokens=self.size
        )


def _words_of_gpt2() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _sample(texts: Iterable[str]) -> Iterator[str]:
    seen = itertools.count()
    total = 0
    for text, _ in zip(texts, seen, strict=False):
        if total >= SAMPLE:
            return
        total += len(text)
        yield text
