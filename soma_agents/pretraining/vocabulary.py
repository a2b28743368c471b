"""A byte-level BPE of one's own, with marks for the ends of documents and turns."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arbiters.errors import CorruptError
from soma_agents.language.symbols.bpe import Bpe
from soma_agents.language.symbols.pieces import Ids
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.pretraining.readers import Dialogue

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


Edges = npt.NDArray[np.int64]
"""Stretches of a stream that are read and not learnt: where each begins, and the place behind it."""

UNHEARD: Edges = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document's token ids; what in them is only heard, since somebody else says it."""

    ids: Ids
    heard: Edges


class Vocabulary:
    """Text → token ids, for packing a corpus.

    Raises:
        CorruptError: `source` is no tokenizer.json, or lacks the marks (`load` adds them).
        InvalidError: it is of another kind than byte-level BPE.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._bpe = Bpe(source)
        if missing := [mark for mark in SPECIAL if mark not in self._bpe.special]:
            raise CorruptError(
                f"the vocabulary has no {missing[0]!r}; only a model that `soma pretrain` made "
                "can be gone on with"
            )
        self.size = self._bpe.vocab_size
        self.end, self.turn_end = self._bpe.special[END], self._bpe.special[TURN_END]

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> "Vocabulary":
        """Learn `size` tokens, the marks counted.

        Raises:
            InvalidError: `size` is below what bytes need, or more than the texts hold.
        """
        return cls(Bpe.train(_sample(texts), size, SPECIAL).source)

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read a tokenizer.json; marks that it lacks get the ids behind its last one.

        Raises:
            NotFoundError: it is not there.
            CorruptError, InvalidError: as the class says.
        """
        return cls(_with_marks(Bpe.load(path)))

    def encode(self, text: str) -> Ids:
        """(N,) token ids; marks of a conversation that it spells out are text like any other."""
        return self._bpe.encode(text)

    def text(self, text: str) -> Encoded:
        """A text with the end behind it, all of it to be learnt."""
        return Encoded(np.append(self.encode(text), np.uint32(self.end)), UNHEARD)

    def dialogue(self, turns: Dialogue) -> Encoded:
        """A conversation as `TEMPLATE` writes it, with the end behind it.

        To be learnt are the assistant's words and the mark that ends its turn. They are encoded
        apart from what stands before them, as they will be when the model says them.
        """
        parts: list[Ids] = []
        edges, place = [0], 0

        def put(ids: Ids) -> None:
            nonlocal place
            parts.append(ids)
            place += len(ids)

        for turn in turns:
            said = turn.role == "assistant"
            put(np.array([self._bpe.special[TURN]], np.uint32))
            put(self.encode(f"{turn.role}\n" if said else f"{turn.role}\n{turn.content}"))
            if said:
                edges.append(place)
                put(self.encode(turn.content))
            put(np.array([self.turn_end], np.uint32))
            if said:
                edges.append(place)
            put(self.encode("\n"))
        put(np.array([self.end], np.uint32))
        return Encoded(np.concatenate(parts), np.array([*edges, place], np.int64))

    def texts(self) -> list[str]:
        """What each token stands for, marks as they are written; broken UTF-8 is U+FFFD."""
        return [piece.decode(errors="replace") for piece in self._bpe.pieces.tolist()]

    def lengths(self) -> npt.NDArray[np.int64]:
        """(V,) bytes of text that each token stands for; marks stand for none."""
        lengths = self._bpe.pieces.lengths.copy()
        lengths[list(self._bpe.special.values())] = 0
        return lengths

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a reply: that of a turn, that of a document."""
        return (self.turn_end, self.end)

    def chat(self) -> ChatTokenizer:
        """The same as the engine knows it."""
        return ChatTokenizer.from_json(
            self.source, template=TEMPLATE, eos_ids=self.ends, most_tokens=self.size
        )


def _with_marks(bpe: Bpe) -> str:
    if all(mark in bpe.special for mark in SPECIAL):
        return bpe.source
    from tokenizers import Tokenizer

    marked = Tokenizer.from_str(bpe.source)
    marked.add_special_tokens([*SPECIAL])
    return marked.to_str()


def _sample(texts: Iterable[str]) -> Iterator[str]:
    total = 0
    for text in texts:
        if total >= SAMPLE:
            return
        total += len(text)
        yield text
