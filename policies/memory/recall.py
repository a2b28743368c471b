"""What of a person's earlier words belongs beside what they ask now.

Precision comes before recall, as in `statements`: a quotation that has nothing to do with the
question costs room and may lead a small model astray. The words are English.
"""

import re
from collections.abc import Iterable, Sequence

from policies.memory.statements import facts_stated, is_task, own_sentences

LIKENESS = 0.5
"""Smallest cosine of a sentence to the question, measured: tests/serving/test_memories.py."""
SHARED = 2
"""Words of its own that a question must have in common with a sentence; one is chance."""
MOST_QUOTED, MOST_CHARACTERS = 3, 300
"""Sentences beside one question, and characters of each."""
MOST_WORDS = 16
"""Of a question that are looked for; a longer one was pasted."""
_FEWEST_WORDS = 4
_STEM, _ENDING = 4, 3
"""A word is known by its beginning: all but three letters, but four at least."""

_WORD = re.compile(r"[^\W_]+")
_FREQUENT = frozenset(
    _WORD.findall("""
    about after all also always and another any anything are back because been before being best
    but can come could did didn does doesn doing don done each else ever every few find for from
    gave get gets getting give given goes going gone good got great had has have having help her
    here hers him his how into isn its just kind know let like likes long made make many may maybe
    mean mine more most much must need never new nice not nothing now off okay one only other our
    ours out over own please put really recall remember remind right said same saw say see shall
    she should some something soon still such sure take tell than thank thanks that the their them
    then there these they thing things think this those time told too took two under until upon
    use used very want wanted was way well went were what when where which while who whom whose
    why will wish with without won would yes yet you your yours
    """)
)
_ASKS_OF_US = re.compile(
    r"\b(?:please|(?:help|find|show|give|let|tell|remind) (?:me|us)\b|can you|could you|would you|"
    r"will you|(?:would|'d) (?:like|love)|(?:want|need|wish|hope|hoping|looking) (?:to|for|a|some)\b)"
    r"|^(?:find|search|book|play|show|buy|make|set|check|look|order|reserve|add|open|start|stop|"
    r"explain|describe|list|suggest|recommend|give|tell|try|use|let's|what|who|how|why|where|when|"
    r"which)\b",
    re.IGNORECASE,
)


def asked(message: str) -> str:
    """The part of a message that asks: its questions, or all of it where there is none."""
    sentences = own_sentences(message)
    return " ".join([s for s in sentences if s.endswith("?")] or sentences)


def beginnings(text: str) -> tuple[str, ...]:
    """How the words begin that say what a text is about, the frequent ones left out."""
    words = (word for word in _WORD.findall(text.casefold()) if len(word) > len("my"))
    found = (word[: max(_STEM, len(word) - _ENDING)] for word in words if word not in _FREQUENT)
    return tuple(dict.fromkeys(found))[:MOST_WORDS]


def worth_comparing(question: str, messages: Iterable[str], *, said: str = "") -> list[str]:
    """Sentences of earlier messages that could answer a question, each once.

    Not what asks for something itself, nor what adds no word to the question, nor what stands in
    `said`. What states a fact about the person is left to their profile, where it can be corrected
    and taken back.
    """
    wanted = beginnings(question)
    found: dict[str, None] = {}
    for message in messages:
        for sentence in own_sentences(message):
            if _says_something(sentence) and _fits(wanted, sentence) and sentence not in said:
                found[sentence] = None
    return [sentence for sentence in found if not facts_stated(sentence)]


def quoted(likenesses: Sequence[tuple[str, float]]) -> tuple[str, ...]:
    """The sentences that are like enough to the question, the likest first."""
    ordered = sorted(likenesses, key=lambda pair: pair[1], reverse=True)
    return tuple(sentence for sentence, cosine in ordered if cosine >= LIKENESS)[:MOST_QUOTED]


def _says_something(sentence: str) -> bool:
    return (
        not sentence.endswith("?")
        and len(sentence) <= MOST_CHARACTERS
        and len(sentence.split()) >= _FEWEST_WORDS
        and not is_task(sentence)
        and not _ASKS_OF_US.search(sentence)
    )


def _fits(wanted: Sequence[str], sentence: str) -> bool:
    """Whether it shares enough with what is wanted, and adds to it."""
    own = set(beginnings(sentence))
    return len(own.intersection(wanted)) >= SHARED and not own <= set(wanted)
