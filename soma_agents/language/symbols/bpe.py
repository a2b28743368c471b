"""Byte-level BPE: learnt with `tokenizers`, kept as its tokenizer.json, encoded with `tiktoken`.

`tiktoken` looks a whole word up before it merges, and merges the pair whose result has the lowest
id. That equals `tokenizers` where ids follow the order of merges, which is checked, and where the
file says `ignore_merges`, as every file written here does.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arbiters.errors import CorruptError, InvalidError, NotFoundError
from soma_agents.language.symbols.pieces import Ids, Pieces, Tokens
from soma_agents.language.symbols.text import utf8

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""Words as GPT-4 cuts them, digits in twos instead of threes: a small vocabulary has few to spare."""
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What the `ByteLevel` pre-tokenizer cuts by when no other expression stands before it."""
BYTES = 256


class Bpe:
    """A vocabulary of byte strings with the rule that cuts text into them.

    Args:
        source: content of a tokenizer.json.

    Raises:
        CorruptError: it is not one, or contradicts itself.
        InvalidError: it describes something else than byte-level BPE.
    """

    def __init__(self, source: str) -> None:
        import tiktoken

        self.source = source
        content = _parsed(source)
        self.pattern = _pattern(content)
        ranks, self.special = _vocabulary(content)
        # Without any special token, `tiktoken` stops at every character to look for one.
        known = self.special or {"<|none|>": max(ranks.values()) + 1}
        self._encoding = tiktoken.Encoding(
            "soma", pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=known
        )
        self.pieces = _pieces(ranks, self.special)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> "Bpe":
        """Learn `vocab_size` tokens, the `special` ones counted; those get the last ids.

        Raises:
            InvalidError: fewer than all bytes and the special tokens, or more than the texts hold.
        """
        from tokenizers import trainers

        size = vocab_size - len(special)
        if size < BYTES:
            raise InvalidError(
                f"vocabulary of {vocab_size!r} is too small: {BYTES} bytes and"
                f" {len(special)} special tokens need {BYTES + len(special)}"
            )
        learner = _blank()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            show_progress=False,
            initial_alphabet=_letters(),
            special_tokens=[],
        )
        learner.train_from_iterator(texts, trainer)
        found = learner.get_vocab_size()
        if found < size:
            raise InvalidError(
                f"vocabulary of {vocab_size!r} is more than these texts hold: they give"
                f" {found + len(special)}; ask for at most that, or bring more text"
            )
        learner.add_special_tokens(list(special))
        return cls(_with_whole_words(learner.to_str()))

    @classmethod
    def load(cls, path: Path) -> "Bpe":
        """Read a tokenizer.json.

        Raises:
            NotFoundError: no such file.
            CorruptError, InvalidError: as the class says.
        """
        try:
            return cls(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotFoundError(f"no vocabulary {str(path)!r}: train one first") from None
        except (OSError, UnicodeDecodeError) as error:
            raise CorruptError(f"vocabulary {str(path)!r} cannot be read: {error}") from error

    def save(self, path: Path) -> None:
        """Write a tokenizer.json."""
        path.write_text(self.source, encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Ids there are, unused ones counted."""
        return len(self.pieces)

    def encode(self, text: str) -> Ids:
        """(N,) uint32; special tokens that stand in the text are read as ordinary text.

        Raises:
            InvalidError: the text has a lone surrogate.
        """
        utf8(text)
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # hundreds of thousands of blanks in a row exhaust its expressions
            return np.array(self._patient.encode(text, add_special_tokens=False).ids, np.uint32)

    @cached_property
    def _patient(self) -> Any:
        """The same vocabulary in `tokenizers`: slower, whatever the text."""
        from tokenizers import Tokenizer

        made = Tokenizer.from_str(self.source)
        made.encode_special_tokens = True  # read them as ordinary text
        return made

    def tokens(self, text: str) -> Tokens:
        """The text in tokens."""
        return Tokens(self.encode(text), self.pieces)

    def decode(self, ids: npt.NDArray[np.integer] | Sequence[int]) -> bytes:
        """The bytes of these tokens; perhaps no whole characters.

        Raises:
            InvalidError: an id is not in the vocabulary.
        """
        return self.pieces.join(np.asarray(ids, np.int64))


def _blank() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    blank = Tokenizer(models.BPE())
    blank.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]  # pyright: ignore[reportArgumentType]
    )
    blank.decoder = decoders.ByteLevel()
    return blank


def _letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet()


def _with_whole_words(source: str) -> str:
    content = json.loads(source)
    content["model"]["ignore_merges"] = True
    return json.dumps(content, ensure_ascii=False, indent=1)


def _parsed(source: str) -> dict[str, Any]:
    try:
        content = json.loads(source)
        kind = content["model"]["type"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise CorruptError(f"this is no tokenizer.json: {error}") from error
    if kind != "BPE":
        raise InvalidError(f"the vocabulary's model is {kind!r}; only 'BPE' is known")
    if content.get("normalizer"):
        raise InvalidError("the vocabulary changes text before it cuts it: it cannot be reversed")
    return content


def _pattern(content: dict[str, Any]) -> str:
    """The expression that cuts text into words."""
    found = content.get("pre_tokenizer")
    match found:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2_PATTERN
        case {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": str(pattern)},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    raise InvalidError(
        f"the vocabulary cuts text into words as {str(found)[:80]!r}; known are a Split by an"
        " expression before ByteLevel, and ByteLevel alone"
    )


def _vocabulary(content: dict[str, Any]) -> tuple[dict[bytes, int], dict[str, int]]:
    """Bytes of each ordinary token → id, and special token → id."""
    from soma_agents.language.tokenizer import ALPHABET

    try:
        special = {str(token["content"]): int(token["id"]) for token in content["added_tokens"]}
        ordinary = {t: int(i) for t, i in content["model"]["vocab"].items() if t not in special}
        ranks = {bytes(ALPHABET[c] for c in token): i for token, i in ordinary.items()}
        merges = [m.split(" ") if isinstance(m, str) else m for m in content["model"]["merges"]]
        order = [ordinary[left + right] for left, right in merges]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CorruptError(f"the vocabulary is damaged: {error!r}") from error
    _check(ranks, special, order)
    return ranks, special


def _check(ranks: dict[bytes, int], special: dict[str, int], order: list[int]) -> None:
    ids = [*ranks.values(), *special.values()]
    if len(set(ids)) < len(ids) or min(ids, default=0) < 0:
        raise CorruptError("the vocabulary is damaged: two tokens have one id, or an id is below 0")
    missing = [byte for byte in range(BYTES) if bytes([byte]) not in ranks]
    if missing:
        raise InvalidError(f"the vocabulary has no token for byte {missing[0]:#04x}")
    if max(ids, default=0) >= 2 * len(ids) + BYTES:
        raise CorruptError(f"the vocabulary is damaged: {len(ids)} tokens with id {max(ids)!r}")
    if any(a >= b for a, b in pairwise(order)):
        raise InvalidError("the vocabulary's ids do not follow the order of its merges")


def _pieces(ranks: dict[bytes, int], special: dict[str, int]) -> Pieces:
    named = {i: piece for piece, i in ranks.items()}
    named |= {i: text.encode() for text, i in special.items()}
    return Pieces.of([named.get(i, b"") for i in range(max(named) + 1)])
