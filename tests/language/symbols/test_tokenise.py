# ruff: noqa: RUF001 - letters that look alike are the point

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings

from arbiters.errors import InvalidError, NotFoundError
from soma_agents.language.symbols.text import read_text
from soma_agents.language.symbols.tokenise import METHODS, tokenise
from tests.language.symbols.samples import SAMPLE, texts


def cut(text, method):
    tokens = tokenise(text, method)
    pieces = tokens.pieces.tolist()
    return [pieces[i].decode() for i in tokens.ids]


@pytest.mark.parametrize("method", METHODS)
@given(text=texts())
@settings(max_examples=40, deadline=None)
def test_every_text_comes_back_to_the_byte(bpe, method, text):
    tokens = tokenise(text, method, bpe)

    assert tokens.to_bytes() == text.encode()
    assert tokens.to_text() == text


@pytest.mark.parametrize("method", [m for m in METHODS if m != "bpe"])
@given(text=texts())
@settings(max_examples=15, deadline=None)
def test_equal_tokens_have_one_id_and_no_token_is_empty(method, text):
    pieces = tokenise(text, method).pieces.tolist()

    assert len(set(pieces)) == len(pieces)
    assert b"" not in pieces


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_text_has_no_tokens(bpe, method):
    tokens = tokenise("", method, bpe)

    assert len(tokens.ids) == 0
    assert tokens.to_text() == ""


@pytest.mark.parametrize("method", METHODS)
def test_a_lone_surrogate_is_refused_with_its_place(bpe, method):
    with pytest.raises(
        InvalidError, match=r"character 3 of the text is the lone surrogate '\\ud800'"
    ):
        tokenise("abc\ud800", method, bpe)


@pytest.mark.parametrize(
    ("method", "text", "tokens"),
    [
        ("space", " a,b  c\r\n", [" ", "a,b", "  ", "c", "\r\n"]),
        ("word", "Can't stop, 3.14!", ["Can't", " ", "stop", ", ", "3.14", "!"]),
        ("word", "日本 🚀 да", ["日", "本", " 🚀 ", "да"]),
        ("grammar", "Stop...  now\r\n\n!", ["Stop", ".", ".", ".", "  ", "now", "\r\n\n", "!"]),
        ("character", "e\u0301👩🏽\u200d🚀\r\nक्षि", ["e\u0301", "👩🏽\u200d🚀", "\r\n", "क्षि"]),
        ("subword", "tokens, e\u0301e\u0301e\u0301e\u0301", ["tok", "ens", ",", " ", "e\u0301" * 3, "e\u0301"]),
        ("syllable", "hyphenation государство", ["hy", "phen", "ation", " ", "го", "су", "дар", "ство"]),
        ("syllable", "안녕 ひら مرحبا", ["안", "녕", " ", "ひ", "ら", " ", "مرحبا"]),
        ("frequency", "so so rare", ["so", " ", "so", " ", "r", "a", "r", "e"]),
        ("byte", "a!", ["a", "!"]),
    ],
)  # fmt: skip
def test_a_method_cuts_where_it_says(method, text, tokens):
    assert cut(text, method) == tokens


def test_a_word_that_grows_in_lower_case_is_still_cut_between_its_characters():
    assert "".join(cut("İİİİİİstanbul", "syllable")) == "İİİİİİstanbul"


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(InvalidError, match="no method 'wrd'; known are space, word"):
        tokenise("a", "wrd")


def test_bpe_without_a_vocabulary_is_refused():
    with pytest.raises(InvalidError, match="needs a vocabulary"):
        tokenise("a", "bpe")


def test_an_id_without_a_piece_is_refused():
    pieces = tokenise(SAMPLE, "word").pieces

    with pytest.raises(InvalidError, match="do not belong"):
        pieces.join(np.array([0, len(pieces)]))


def test_a_file_that_is_not_utf8_is_refused_with_the_place(tmp_path):
    file = tmp_path / "latin1.txt"
    file.write_bytes(b"caf\xe9 ol\xe9")

    with pytest.raises(InvalidError, match=r"latin1.txt' is not UTF-8 .* 0xe9 at byte 3"):
        read_text(file)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"absent\.txt"):
        read_text(tmp_path / "absent.txt")


def test_byte_order_mark_and_line_ends_are_kept(tmp_path):
    file = tmp_path / "windows.txt"
    file.write_bytes(b"\xef\xbb\xbfa\r\nb\r")

    assert read_text(file) == "\ufeffa\r\nb\r"


@pytest.mark.parametrize("letter", ["a", " "])
def test_a_megabyte_of_one_letter_is_encoded_like_anything_else(bpe, letter):
    text = letter * 1_000_000 + "<|end|>"

    tokens = tokenise(text, "bpe", bpe)

    assert tokens.to_text() == text
    assert bpe.special["<|end|>"] not in tokens.ids


def test_no_syllable_begins_inside_a_character():
    assert cut("in\u0301formation", "syllable") == ["in\u0301", "for", "ma", "tion"]


def test_segmentation_loads_neither_torch_nor_ray():
    script = (
        "import sys, soma_agents.language.symbols.tokenise;"
        "print([m for m in ('torch', 'ray') if m in sys.modules])"
    )

    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert found.stdout.strip() == "[]"
