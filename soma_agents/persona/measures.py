"""Measures of how a text is written: computed, never guessed. All but a few are for English.

| measure | what it is | source |
|---|---|---|
| `words`, `sentences`, `words_per_sentence`, `characters_per_word` | counts | |
| `sentiment` | VADER's compound score in [-1, 1], mean over the sentences | Hutto & Gilbert 2014 |
| `positive`, `negative`, `feeling` | VADER's shares in [0, 1]; feeling is their sum | the same |
| `reading_grade` | Flesch-Kincaid grade level, in US school years; syllables by Pyphen | Kincaid et al. 1975 |
| `function_word_formality` | 0 to 100, more is more formal; see `_formality` | after Heylighen & Dewaele 1999 |
| `variety` | distinct words / √words | Guiraud 1954 |
| `emoji_per_word`, `numbers_per_word`, `contractions_per_word` | counts / words | |
| `questions_per_sentence`, `exclamations_per_sentence` | sentences that end so / sentences | |
| `hedges_per_word`, `certainty_per_word` | from a subset of the lists in Hyland 2005, *Metadiscourse* | |
| `first_person_per_word`, `second_person_per_word` | pronouns / words | |
| `courtesy_`, `care_`, `play_`, `delight_`, `connectives_per_word` | words of our own short lists / words | |
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib import import_module
from itertools import islice
from math import sqrt

MAX_CHARACTERS = 8_000
"""Of a longer text its beginning is measured: the style shows, and the time stays bounded."""

_WORDS_KNOWN = 10_000
"""Words whose syllables are kept in mind."""
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_SENTENCE = re.compile(r"[^.!?\u2026\n]*[^\W_][^.!?\u2026\n]*[.!?\u2026]*")
_EMOTICON = re.compile(r"(?<!\w)[:;=]-?[)DPp](?!\w)")
_IN_LY = re.compile(r"\w{3,}ly")
_NUMBER = re.compile(r"\d+")


def _lexicon(words: str) -> frozenset[str]:
    return frozenset(words.split())


_FIRST = _lexicon("i me my mine myself we us our ours ourselves")
_SECOND = _lexicon("you your yours yourself yourselves ya")
_PRONOUNS = (
    _FIRST
    | _SECOND
    | _lexicon(
        "he him his himself she her hers herself it its itself they them their theirs themselves "
        "this that these those who whom whose what something anything nothing everything someone "
        "anyone everyone nobody somebody one"
    )
)
_ARTICLES = _lexicon("a an the")
_PREPOSITIONS = _lexicon(
    "about above across after against along among around as at before behind below beneath beside "
    "between beyond by concerning despite during except for from in inside into near of off on onto "
    "over per regarding since through throughout to toward towards under until upon via with within "
    "without"
)
_AUXILIARIES = _lexicon(
    "am is are was were be been being do does did doing have has had having can could may might must "
    "shall should will would get gets got gonna wanna gotta"
)
_ADVERBS = _lexicon(
    "very really just so too now then here there again also always never often sometimes soon still "
    "already yet quite rather pretty almost even only ever maybe perhaps not well"
)
_INTERJECTIONS = _lexicon(
    "oh ah wow hey hi hello yeah yes yep no nope ok okay lol haha hehe ugh oops hmm yay please thanks"
)
_HEDGES = _lexicon(
    "maybe perhaps possibly probably might may could would seem seems seemed appear appears guess "
    "suppose somewhat kinda sorta likely apparently roughly about almost fairly quite rather tend "
    "tends suggest suggests presumably supposedly"
)
_CERTAINTY = _lexicon(
    "always never certainly clearly definitely obviously surely undoubtedly must indeed absolutely "
    "exactly sure certain truly course proves evidently"
)
_COURTESY = _lexicon(
    "please thanks thank welcome pleasure kindly appreciate grateful sorry pardon excuse glad happy"
)
_CARE = _lexicon(
    "sorry understand feel feeling feels felt hope care worry worried sad hard difficult tough lonely "
    "afraid hurt comfort support help together okay alright imagine glad"
)
_PLAY = _lexicon(
    "haha hahaha hehe lol lmao rofl joke joking jokes kidding funny silly pun fun prank hilarious goofy"
)
_DELIGHT = _lexicon(
    "amazing awesome great wonderful fantastic brilliant love lovely excellent perfect beautiful wow "
    "yay excited exciting delighted superb incredible cool"
)
_CONNECTIVES = _lexicon(
    "because therefore thus hence so since first second third next then finally however although "
    "though while whereas example instance means moreover furthermore also"
)
_COUNTED: Mapping[str, frozenset[str]] = {
    "hedges_per_word": _HEDGES,
    "certainty_per_word": _CERTAINTY,
    "first_person_per_word": _FIRST,
    "second_person_per_word": _SECOND,
    "courtesy_per_word": _COURTESY,
    "care_per_word": _CARE,
    "delight_per_word": _DELIGHT,
    "connectives_per_word": _CONNECTIVES,
}


class ComputedMeasures:
    """Implements `arbiters.ports.Measures`. Well below a millisecond for an everyday message."""

    def __init__(self) -> None:
        # Loaded now: the first message must not wait seconds for a library.
        self._sentiment: Callable[[str], Mapping[str, float]] = _vader()
        self._syllables = _hyphenation()
        self._emoji: Callable[[str], int] = import_module("emoji").emoji_count

    def of(self, text: str) -> Mapping[str, float]:
        """Every measure of a text; zeros for one without words."""
        text = text[:MAX_CHARACTERS]
        tokens = [token.casefold().replace("\u2019", "'") for token in _WORD.findall(text)]
        sentences = [sentence.strip() for sentence in _SENTENCE.findall(text)]
        bare = [token.partition("'")[0] for token in tokens]
        words, count = max(len(tokens), 1), max(len(sentences), 1)
        contractions = sum("'" in token for token in tokens)
        play = _among(bare, _PLAY) + len(_EMOTICON.findall(text))
        measures = {
            "words": float(len(tokens)),
            "sentences": float(len(sentences)),
            "words_per_sentence": len(tokens) / count,
            "characters_per_word": sum(map(len, tokens)) / words,
            "reading_grade": _flesch_kincaid(bare, count, self._syllables),
            "function_word_formality": _formality(bare, contractions),
            "variety": len(set(tokens)) / sqrt(words),
            "emoji_per_word": self._emoji(text) / words,
            "numbers_per_word": len(_NUMBER.findall(text)) / words,
            "contractions_per_word": contractions / words,
            "questions_per_sentence": sum("?" in s[-3:] for s in sentences) / count,
            "exclamations_per_sentence": sum("!" in s[-3:] for s in sentences) / count,
            "play_per_word": play / words,
        }
        counted = {name: _among(bare, lexicon) / words for name, lexicon in _COUNTED.items()}
        return measures | counted | self._mood(sentences)

    def _mood(self, sentences: list[str]) -> dict[str, float]:
        """VADER is made for sentences: over a long text its score saturates and its time squares."""
        scores = [self._sentiment(sentence) for sentence in islice(sentences, 40)]
        count = max(len(scores), 1)
        positive = sum(score["pos"] for score in scores) / count
        negative = sum(score["neg"] for score in scores) / count
        return {
            "sentiment": sum(score["compound"] for score in scores) / count,
            "positive": positive,
            "negative": negative,
            "feeling": positive + negative,
        }


def _among(tokens: Iterable[str], lexicon: frozenset[str]) -> int:
    return sum(token in lexicon for token in tokens)


def _formality(tokens: list[str], contractions: int) -> float:
    """Heylighen and Dewaele's F-score, approximated by word lists instead of a tagger.

    Theirs is (noun + adjective + preposition + article - pronoun - verb - adverb - interjection +
    100) / 2, each in percent of words. Open classes cannot be listed: nouns, adjectives and full
    verbs are left out, auxiliaries stand for verbs, a contraction counts as one auxiliary and
    words in -ly count as adverbs. Comparable with itself only, not with published F-scores.
    """
    if not tokens:
        return 50.0
    formal = _among(tokens, _PREPOSITIONS) + _among(tokens, _ARTICLES)
    adverbs = sum(token in _ADVERBS or bool(_IN_LY.fullmatch(token)) for token in tokens)
    casual = _among(tokens, _PRONOUNS) + _among(tokens, _AUXILIARIES) + contractions + adverbs
    casual += _among(tokens, _INTERJECTIONS)
    return min(max((100 * (formal - casual) / len(tokens) + 100) / 2, 0.0), 100.0)


def _vader() -> Callable[[str], Mapping[str, float]]:
    return (
        import_module("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer().polarity_scores
    )


def _flesch_kincaid(bare: list[str], sentences: int, syllables: Callable[[str], int]) -> float:
    """The grade level of Kincaid et al. 1975, syllables by hyphenation."""
    if not bare:
        return 0.0
    spoken = sum(map(syllables, bare)) / len(bare)
    return 0.39 * len(bare) / sentences + 11.8 * spoken - 15.59


def _hyphenation() -> Callable[[str], int]:
    """Parts of an English word between its hyphens, as many as it has syllables, nearly."""
    hyphens = import_module("pyphen").Pyphen(lang="en_US").positions
    return lru_cache(_WORDS_KNOWN)(lambda word: len(hyphens(word)) + 1)
