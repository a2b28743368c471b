import numpy as np
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arbiters.errors import CorruptError, InvalidError
from soma_agents.language.symbols.compression import frequencies, mixing, patterns
from soma_agents.language.symbols.compression.codec import METHODS, compress, decompress
from soma_agents.language.symbols.compression.parts import Reader, Writer


def zipf(count, seed=1):
    """Ids as frequent as words are, with phrases that recur."""
    dice = np.random.default_rng(seed)
    ids = np.minimum(dice.zipf(1.3, count), 4000).astype(np.uint32)
    for start in dice.integers(0, max(count - 12, 1), count // 40):
        ids[start : start + 6] = (7, 3000, 12, 2999, 5, 88)[: len(ids[start : start + 6])]
    return ids


STREAMS = {
    "nothing": np.zeros(0, np.uint32),
    "one": np.array([5]),
    "zeros": np.zeros(3000, np.int64),
    "largest": np.array([2**32 - 1, 0, 2**32 - 1]),
    "steps": np.arange(2000, dtype=np.uint16),
    "alternating": np.tile([1, 2], 1500),
    "noise": np.random.default_rng(3).integers(0, 2**32, 900),
    "runs": np.repeat(np.arange(40), 97),
    "words": zipf(5000),
    "a lane that is not full": zipf(2000)[:-7],
}


@pytest.fixture
def short_lanes(monkeypatch):
    """Many lanes in a short stream."""
    monkeypatch.setattr(mixing, "LANE_TOKENS", 64)
    monkeypatch.setattr(frequencies, "LANE_TOKENS", 64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.usefixtures("short_lanes")
def test_every_stream_comes_back(method, name):
    stream = STREAMS[name]

    found = decompress(compress(stream, method))

    assert found.dtype == np.uint32
    assert found.tolist() == stream.tolist()


@pytest.mark.parametrize("method", METHODS)
@given(
    stream=arrays(
        np.uint32, st.integers(0, 30), elements=st.integers(0, 9) | st.integers(0, 2**32 - 1)
    )
)
@settings(max_examples=25, deadline=None)
def test_any_stream_comes_back(method, stream):
    assert np.array_equal(decompress(compress(stream, method)), stream)


def test_counters_that_all_lanes_meet_at_once_stay_within_bounds(monkeypatch):
    monkeypatch.setattr(mixing, "LANE_TOKENS", 1)
    stream = np.ones(10 * mixing.MOST_LANES, np.uint32)

    assert np.array_equal(decompress(compress(stream, "adaptive")), stream)


def test_adaptive_is_smaller_than_zstd_on_words_and_frequency_is_near_the_entropy():
    stream = zipf(30_000)
    counts = np.bincount(stream)
    counts = counts[counts > 0]
    entropy = float((counts * np.log2(len(stream) / counts)).sum()) / 8

    best = len(zstd.compress(stream.astype("<u2").tobytes(), 22))

    assert len(compress(stream, "adaptive")) < best
    assert entropy < len(compress(stream, "frequency")) < 1.08 * entropy


def test_a_stream_of_few_runs_is_small_by_runs_and_of_phrases_by_patterns():
    assert len(compress(STREAMS["runs"], "rle")) < 150
    assert len(compress(STREAMS["alternating"], "pattern")) < 120


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("short_lanes")
def test_any_changed_byte_is_found(method):
    data = compress(zipf(300), method)
    dice = np.random.default_rng(5)

    for place in dice.integers(0, len(data), 40).tolist():
        damaged = bytearray(data)
        damaged[place] ^= int(dice.integers(1, 256))
        with pytest.raises((CorruptError, InvalidError)):
            decompress(bytes(damaged))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("short_lanes")
def test_anything_cut_off_or_added_is_found(method):
    data = compress(zipf(200), method)

    for length in range(0, len(data), 7):
        with pytest.raises((CorruptError, InvalidError)):
            decompress(data[:length])
    with pytest.raises(CorruptError, match="left over"):
        decompress(data + b"\0")


@given(junk=st.binary(max_size=60), method=st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_junk_behind_a_good_head_is_refused_by_name(junk, method):
    head = b"SOMT" + bytes([1, method])

    with pytest.raises((CorruptError, InvalidError)):
        decompress(head + b"\xc8\x01" + b"\0\0\0\1" + junk)


def test_a_bomb_is_refused_before_it_goes_off():
    data = compress(np.zeros(1_000_000, np.uint32), "rle")

    with pytest.raises(InvalidError, match="claim to be 1000000; at most 1000"):
        decompress(data, at_most=1000)


def test_rules_that_nest_deeper_than_any_round_are_refused():
    deep = [[0, 0], *([place, 0] for place in range(1, 60))]
    text = np.array([60, *np.array(deep).reshape(-1)], np.uint32)
    out = Writer()
    for number in (60, 1):
        out.number(number)
    out.packed(np.zeros(1, np.int64))
    out.number(1)
    frequencies.pack(text, out)

    with pytest.raises(CorruptError, match="60 deep"):
        patterns.unpack(Reader(out.done()), 61)


def test_a_newer_version_and_another_format_are_told_apart():
    with pytest.raises(InvalidError, match="version 9"):
        decompress(b"SOMT\x09\0\0\0\0\0\0")
    with pytest.raises(CorruptError, match="no compressed tokens"):
        decompress(b"GGUF\x03\0\0\0")


@pytest.mark.parametrize(
    "tokens", [np.array([-1]), np.array([2**32]), np.array([0.5]), np.zeros((2, 2), np.int64)]
)
def test_what_is_no_row_of_ids_is_refused(tokens):
    with pytest.raises(InvalidError):
        compress(tokens, "rle")


def test_an_unknown_compression_is_refused_with_the_known_ones():
    with pytest.raises(InvalidError, match="'gz'; known are rle, pattern"):
        compress(np.zeros(1, np.int64), "gz")


def test_packing_beyond_one_block_ends_on_whole_bytes():
    values = np.random.default_rng(2).integers(0, 1 << 13, 150_001)
    out = Writer()
    out.packed(values)

    found = Reader(out.done())

    assert np.array_equal(found.packed(len(values)), values)
    found.end()
