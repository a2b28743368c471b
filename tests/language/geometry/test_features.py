import random
import re
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from soma_agents.language.geometry import features as geometry
from soma_agents.language.geometry import places
from soma_agents.language.geometry.features import text_features
from soma_agents.language.geometry.parts import feature_means
from soma_agents.language.geometry.places import record_features
from soma_agents.language.symbols.records import records
from soma_agents.language.symbols.tokenise import tokenise

SPECIAL = ("<|end|>",)
BEGINS = (r"^ ", r"^\n", r"^ ?[A-Z]", r"^ ?[a-z]", r"^ ?[0-9]", r"^ ?[^\w\s]", r"^[\t\r\f\v]")
WHOLE = (r" ?[A-Za-z]+", r" ?[A-Z]{2,}", r" ?[0-9]+", r" ?[^\w\s]+", r"\s+")
HAS = (r"[.!?]", r"[,;:]", r"[\"'`]", r"[\[\](){}<>]", r"\n", r"[-/]")
ODD = list(" \n\t\r\v aeiousxyzAEIZÉéß9٣.!?,;:'\"-/[]{}_<>\u3000\ufffdİ\x1c\x85\u200b我Ж")


def by_expressions(text):
    """The table of `features`, one token and one regular expression at a time."""
    special = text in SPECIAL
    bare = "" if special else text.strip()
    letters = "".join(filter(str.isalpha, bare)).lower()
    begins = [not special and re.search(p, text) is not None for p in BEGINS]
    begins += [not special and text.startswith("\ufffd"), special]
    whole = [not special and re.fullmatch(p, text) is not None for p in WHOLE]
    whole.append(not bare.isascii())
    has = [not special and re.search(p, text) is not None for p in HAS]
    size = min(9, len(bare.encode()))
    lengths = [size == n for n in range(1, 10)]
    endings = [len(letters) > len(e) and letters.endswith(e) for e in geometry.ENDINGS]
    endings.append(letters[-1:] in set("aeiou") and bool(letters))
    words = [letters in group.split() for group in geometry.WORDS]
    bucket = blake2b(letters.encode(), digest_size=1).digest()[0] % 16 if letters else -1
    hashes = [bucket == n for n in range(16)]
    vowels = sum(letter in "aeiou" for letter in letters) / max(1, len(letters))
    return np.array(
        [*begins, *whole, *has, *lengths, *endings, *words, *hashes, vowels], np.float32
    )


def test_all_tokens_at_once_have_the_features_that_each_has_by_itself():
    draw = random.Random(5)
    texts = ["".join(draw.choices(ODD, k=draw.randint(0, 7))) for _ in range(800)]
    texts += [" the", "The", "hundred", " MOTION", "  a ", "", *SPECIAL, " 12", "!!", " ", "\n"]

    found = text_features(texts, SPECIAL)

    np.testing.assert_array_equal(found, np.stack([by_expressions(text) for text in texts]))


def test_no_token_has_no_features():
    assert text_features([]).shape == (0, 65)
    tokens = tokenise("", "grammar")
    assert record_features(tokens, records(tokens)).shape == (0, 80)


def columns(text):
    tokens = tokenise(text, "grammar")
    found = record_features(tokens, records(tokens))
    assert found.shape == (len(tokens.ids), places.COLUMNS)
    return found.T


def test_a_record_tells_where_its_token_stands():
    found = columns("A fox. A fox!")  # A,␣,fox,.,␣,A,␣,fox,!

    assert found[65].tolist() == pytest.approx([n / 8 for n in range(9)])
    assert found[66, 3] == pytest.approx(2 / 16)
    assert np.flatnonzero(found[67]).tolist() == [0]
    assert np.flatnonzero(found[68]).tolist() == [8]
    assert found[69, 0] == pytest.approx(np.log2(9) / 16)


def test_a_record_tells_how_its_token_is_repeated():
    found = columns("A fox. A fox!")

    assert found[70, 0] == pytest.approx(1 / 16)
    assert np.flatnonzero(found[71]).tolist() == [3, 8]
    assert np.flatnonzero(found[72]).tolist() == [0, 1, 2, 3, 8]
    assert found[75, [0, 4, 5]].tolist() == pytest.approx([0, 1 / 3, 1 / 5])
    twice = columns("no-no!!")  # no,-,no,!,!
    assert np.flatnonzero(twice[73]).tolist() == [4]
    assert np.flatnonzero(twice[74]).tolist() == [3]


def test_a_record_tells_what_its_neighbours_are():
    found = columns("A fox. A fox!")

    assert np.flatnonzero(found[76]).tolist() == [4]
    assert np.flatnonzero(found[77]).tolist() == [2, 5, 7]
    assert np.flatnonzero(found[78]).tolist() == [2, 7]
    assert np.flatnonzero(found[79]).tolist() == [0, 3, 5]


def test_texts_read_together_have_the_features_that_each_has_by_itself():
    texts = ["A fox. A fox!", "  one\n\ntwo  ", "", "日本 is far", "\n", "a\nb"]

    together = feature_means(texts)

    for text, found in zip(texts, together, strict=True):
        tokens = tokenise(text.strip() or "\u2423", "grammar")
        alone = record_features(tokens, records(tokens)).mean(axis=0)
        np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)


def test_the_page_lists_every_column():
    page = (Path(__file__).parents[3] / "docs" / "geometry.md").read_text()

    listed = [int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert listed == list(range(places.COLUMNS))
