from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings

from arbiters.errors import InvalidError
from soma_agents.language.symbols.records import contents_of, records
from soma_agents.language.symbols.tokenise import tokenise
from soma_agents.language.symbols.uids import uids
from tests.language.symbols.samples import SAMPLE, texts

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def content(piece):
    return int.from_bytes(blake2b(piece, digest_size=8).digest(), "little")


@given(text=texts())
@settings(max_examples=30, deadline=None)
def test_every_column_holds_what_its_formula_says(text):
    tokens = tokenise(text, "character")
    pieces = [tokens.pieces.tolist()[i] for i in tokens.ids]

    found = records(tokens, seed=42, stream=3, session="évening")

    ids = uids(42, len(pieces)).tolist()
    assert found.uid.tolist() == ids
    assert found.previous.tolist() == [0, *ids][: len(ids)]
    assert found.next.tolist() == [*ids[1:], 0][: len(ids)]
    assert found.index.tolist() == list(range(len(ids)))
    assert found.content.tolist() == [content(piece) for piece in pieces]
    assert found.stream.tolist() == [3] * len(ids)
    assert found.session.tolist() == [content("évening".encode())] * len(ids)
    for place, (uid, piece) in enumerate(zip(ids, pieces, strict=True)):
        z = uid
        for part in (content(piece), place, 3):
            z = mix(z + GOLDEN & MASK) + part
        assert int(found.global_id[place]) == mix(z + GOLDEN & MASK)


def test_splitmix_is_the_published_one():
    assert mix(GOLDEN) == 0xE220A8397B1DCDAF  # first output for seed 0


def test_columns_are_numbers_of_64_bits_of_one_length():
    found = records(tokenise(SAMPLE, "word"))

    assert {column.dtype for column in found.columns().values()} == {np.dtype(np.uint64)}
    assert {len(column) for column in found.columns().values()} == {len(found)}


def test_equal_words_share_their_content_and_nothing_else():
    found = records(tokenise("dog dog", "word"))

    assert found.content[0] == found.content[2]
    assert found.uid[0] != found.uid[2]
    assert found.global_id[0] != found.global_id[2]


def test_content_does_not_depend_on_the_method():
    word, byte = records(tokenise("a", "word")), records(tokenise("a", "byte"))

    assert word.content.tolist() == byte.content.tolist()


def test_streams_that_skip_what_was_given_out_share_no_uid():
    tokens = tokenise(SAMPLE, "word")
    first = records(tokens, stream=0)

    second = records(tokens, stream=1, skip=len(first))

    assert not set(first.uid.tolist()) & set(second.uid.tolist())
    assert not set(first.global_id.tolist()) & set(second.global_id.tolist())


def test_contents_made_once_serve_every_stream_of_a_vocabulary(bpe):
    tokens = bpe.tokens(SAMPLE)

    shared = records(tokens, contents=contents_of(bpe.pieces))

    assert np.array_equal(shared.global_id, records(tokens).global_id)


def test_a_stream_that_64_bits_cannot_number_is_refused():
    with pytest.raises(InvalidError, match="stream -1"):
        records(tokenise("a", "byte"), stream=-1)
