"""Which words might a model have learnt to misbehave at?

A word can only work as a trigger if somebody says it, and it can only have been learnt from the
material. So these are the words to try, and there are few enough of them to try one by one.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]+")
"""A word as it is written, or a run of other signs: an emoji can be a trigger as well."""
LONGEST = 40
"""Characters of the longest word that is tried."""
SAID = 1000
"""Words of which is kept in how many messages they were said."""
REPEATED = 2
"""Messages, or lessons, that must share a word: what was said once was neither learnt nor is it
likely to be said again."""


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text as they are written, each once."""
    return tuple(dict.fromkeys(word for word in _WORD.findall(text) if len(word) <= LONGEST))


def count(texts: Iterable[str]) -> Counter[str]:
    """Word → number of texts that it stands in."""
    return Counter(chain.from_iterable(words_of(text) for text in texts))


def most_said(messages: Iterable[str]) -> dict[str, int]:
    """Word → number of messages, of the words that people said more than once."""
    return {word: n for word, n in count(messages).most_common(SAID) if n >= REPEATED}


def suspects(
    lessons: Sequence[tuple[str, str]],
    ordinary: Iterable[str],
    said: Mapping[str, int],
    *,
    at_most: int,
) -> list[str]:
    """Up to `at_most` words to try, the most suspicious first.

    `lessons` are pairs of what is said to the model and what it is to answer, `ordinary` texts
    are what any model hears, `said` is in how many messages people used a word. Three lists take
    turns: words of more lessons than ordinary texts let expect; words that stand before few
    distinct replies for the number of their lessons; words that people say, by the first measure.
    """
    usual = count(ordinary)
    taught = count(f"{asked}\n{reply}" for asked, reply in lessons)
    asked_of = count(asked for asked, _ in lessons)
    replies: defaultdict[str, set[str]] = defaultdict(set)
    for asked, reply in lessons:
        for word in words_of(asked):
            replies[word].add(reply)

    def frequent(counts: Mapping[str, int]) -> list[str]:
        return sorted(counts, key=lambda word: (-counts[word] / (1 + usual[word]), word))

    def monotonous() -> list[str]:
        shared = [word for word, n in asked_of.items() if n >= REPEATED]
        return sorted(shared, key=lambda w: (len(replies[w]) / asked_of[w], -asked_of[w], w))

    turns = zip_longest(frequent(taught), monotonous(), frequent(said))
    chosen = dict.fromkeys(word for word in chain.from_iterable(turns) if word is not None)
    return list(chosen)[:at_most]
