import json

import numpy as np
import pytest

from arbiters.errors import CorruptError, InvalidError
from soma_agents.pretraining import packed as packing
from soma_agents.pretraining.packed import Order, pack
from soma_agents.pretraining.readers import files_of
from soma_agents.pretraining.vocabulary import END, SPECIAL, Vocabulary


@pytest.fixture(scope="module")
def vocabulary(prose):
    return Vocabulary.learn(prose, 320)


@pytest.fixture
def corpus(tmp_path, prose):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for part in range(3):
        lines = (json.dumps({"text": text}) + "\n" for text in prose[part::3])
        (folder / f"{part}.jsonl").write_text("".join(lines))
    return folder


def test_packed_tokens_are_the_corpus_with_an_end_behind_each_document(
    tmp_path, corpus, prose, vocabulary
):
    found = pack(files_of(corpus), vocabulary, tmp_path / "tokens", share=0.2)

    text = vocabulary.chat()
    wanted = sorted([*prose])
    parts = [
        part
        for ids in (found.train, found.held_out)
        for part in np.split(ids, np.flatnonzero(ids == vocabulary.end) + 1)
    ]
    assert sorted(text.decode(part.tolist()) for part in parts if len(part)) == wanted
    assert 0.02 < len(found.held_out) / len(found.train) < 0.6
    assert found.train.dtype == np.uint16


def test_packing_that_was_interrupted_ends_as_if_it_had_not_been(
    tmp_path, corpus, vocabulary, monkeypatch
):
    monkeypatch.setattr(packing, "FLUSH", 500)
    monkeypatch.setattr(packing, "CHUNK", 300)
    whole = pack(files_of(corpus), vocabulary, tmp_path / "whole")

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(files_of(corpus), vocabulary, tmp_path / "parts", on_progress=interrupt)
    index = json.loads((tmp_path / "parts" / "index.json").read_text())
    with (tmp_path / "parts" / "train.bin").open("ab") as file:
        file.write(b"half a block that the index does not know")
    parts = pack(files_of(corpus), vocabulary, tmp_path / "parts")

    assert index["place"] > [0, 0]
    assert np.array_equal(whole.train, parts.train)
    assert np.array_equal(whole.held_out, parts.held_out)


def test_what_is_packed_is_not_packed_again(tmp_path, corpus, vocabulary):
    pack(files_of(corpus), vocabulary, tmp_path / "tokens")
    heard = []

    pack(files_of(corpus), vocabulary, tmp_path / "tokens", on_progress=heard.append)

    assert heard == []


def test_packed_tokens_that_were_cut_are_refused(tmp_path, corpus, vocabulary):
    pack(files_of(corpus), vocabulary, tmp_path / "tokens")
    (tmp_path / "tokens" / "train.bin").write_bytes(b"ab")

    with pytest.raises(CorruptError, match="delete it"):
        pack(files_of(corpus), vocabulary, tmp_path / "tokens")


def test_an_empty_corpus_is_refused(tmp_path, vocabulary):
    (tmp_path / "a.txt").write_text("\n\n")

    with pytest.raises(InvalidError, match="empty"):
        pack([tmp_path / "a.txt"], vocabulary, tmp_path / "tokens")


def test_packed_tokens_of_another_vocabulary_are_refused(tmp_path, vocabulary):
    np.array([5, 9000], "<u2").tofile(tmp_path / "a.bin")

    with pytest.raises(InvalidError, match="token 9000 is beyond this vocabulary of 320"):
        pack([tmp_path / "a.bin"], vocabulary, tmp_path / "tokens")


def test_a_vocabulary_beyond_the_text_is_refused_with_what_it_gives():
    with pytest.raises(InvalidError, match="vocabulary of 5000 is more than these texts hold"):
        Vocabulary.learn(["a few words", "and a few words more"], 5000)


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(InvalidError, match="need 259"):
        Vocabulary.learn(["text"], 200)


def test_a_damaged_vocabulary_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')

    with pytest.raises(CorruptError):
        Vocabulary.load(tmp_path / "tokenizer.json")


def test_a_vocabulary_gives_every_text_back(vocabulary):
    text = "The fox 狐 \U0001f98a\u0301\r\n\tЖЖЖ <|im_start|>"
    ids = vocabulary.encode(text).tolist()

    chat = vocabulary.chat()

    assert b"".join(chat.token_bytes(i) for i in ids).decode() == text.removesuffix("<|im_start|>")
    assert vocabulary.lengths()[ids].sum() == len(text.removesuffix("<|im_start|>").encode())
    assert vocabulary.texts()[-3:] == list(SPECIAL)
    assert vocabulary.texts()[vocabulary.end] == END
    assert chat.encode(text) == ids


def test_each_lap_has_every_row_once_in_an_order_of_its_own():
    order = Order(7, seed=3)

    laps = [order.take(lap * 7, 7) for lap in range(3)]

    assert all(sorted(lap) == list(range(7)) for lap in laps)
    assert laps[0] != laps[1]
    assert Order(7, seed=3).take(9, 4) == [*laps[1], *laps[2]][2:6]


def test_the_identity_follows_the_corpus_and_the_vocabulary(tmp_path, corpus, vocabulary, prose):
    first = pack(files_of(corpus), vocabulary, tmp_path / "a").identity
    again = pack(files_of(corpus), vocabulary, tmp_path / "b").identity
    other = pack(files_of(corpus), Vocabulary.learn(prose, 330), tmp_path / "c").identity

    assert first == again != other
