import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from arbiters.errors import CorruptError, InvalidError, NotFoundError, SomaError
from soma_agents.language.geometry import file
from soma_agents.language.geometry.embedder import METHODS

TEXTS = ["The cat sat.", "unheard-of words", "!", ""]


@pytest.fixture
def content(embedders):
    return file.to_bytes(embedders["hybrid"])


def put(tmp_path, content):
    path = tmp_path / "words.embed"
    path.write_bytes(content)
    return path


def changed(content, change):
    """The file with its tensors and facts changed, and sealed again."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    facts = header.pop("__metadata__")
    types = {"U8": np.uint8, "F16": np.float16, "F32": np.float32}
    tensors = {}
    for name, place in header.items():
        start, end = (8 + length + at for at in place["data_offsets"])
        flat = np.frombuffer(content[start:end], types[place["dtype"]])
        tensors[name] = flat.reshape(place["shape"]).copy()
    facts.pop("seal")
    change(tensors, facts)
    return save(tensors, facts | {"seal": file._seal(facts, tensors)})


@pytest.mark.parametrize("method", METHODS)
def test_what_was_written_is_read(tmp_path, embedders, method):
    path = put(tmp_path, file.to_bytes(embedders[method]))

    again = file.load(path)

    np.testing.assert_array_equal(again.embed(TEXTS), embedders[method].embed(TEXTS))
    assert file.to_bytes(again) == path.read_bytes()


def test_the_facts_say_what_is_in_it(embedders, content):
    (length,) = struct.unpack("<Q", content[:8])

    facts = json.loads(content[8 : 8 + length])["__metadata__"]

    hybrid = embedders["hybrid"]
    assert facts["method"] == "hybrid"
    assert facts["dim"] == str(hybrid.dim)
    assert facts["vocabulary"] == hybrid.lexicon.digest
    assert facts["corpus"] == hybrid.corpus
    assert facts["version"] == "1"


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match="soma embed train"):
        file.load(tmp_path / "none")


@pytest.mark.parametrize(
    "junk", [b"", b"\0" * 64, b"\xff" * 64, b"not a model at all", struct.pack("<Q", 1 << 60)]
)
def test_junk_is_refused(tmp_path, junk):
    with pytest.raises(InvalidError, match="no embedding file"):
        file.load(put(tmp_path, junk))


def test_safetensors_of_something_else_are_refused(tmp_path):
    with pytest.raises(InvalidError, match="its format is None"):
        file.load(put(tmp_path, save({"a": np.zeros(3, np.float32)})))


def test_a_file_that_is_cut_off_is_refused(tmp_path, content):
    for size in (4, 100, len(content) // 2, len(content) - 1):
        with pytest.raises(InvalidError, match="no embedding file"):
            file.load(put(tmp_path, content[:size]))


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=50, deadline=None)
def test_a_changed_bit_is_found(tmp_path_factory, embedders, place, bit):
    content = bytearray(file.to_bytes(embedders["hash"]))
    content[int(place * len(content))] ^= 1 << bit

    with pytest.raises(SomaError):
        file.load(put(tmp_path_factory.getbasetemp(), bytes(content)))


def set_tensor(name, value):
    def change(tensors, _):
        tensors[name] = value(tensors[name])

    return change


def set_fact(name, value):
    def change(_, facts):
        facts[name] = value

    return change


def without(name):
    def change(tensors, _):
        del tensors[name]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_fact("method", "glove"), "method 'glove'"),
        (set_fact("method", "hash"), "has the tensors"),
        (set_fact("buckets", "-3"), "'-3' buckets"),
        (set_fact("buckets", "9" * 400), "buckets"),
        (without("guess"), "has the tensors"),
        (set_tensor("shares", lambda t: t * np.float32("nan")), "not finite"),
        (set_tensor("shares", lambda t: t - 1), "shares of them"),
        (set_tensor("shares", lambda t: t[1:]), "shares of them"),
        (set_tensor("table", lambda t: t[1:]), "'table'"),
        (set_tensor("table", lambda t: t.astype(np.float32)), "'table' as float32"),
        (set_tensor("guess", lambda t: t[:, 1:].copy()), "'guess'"),
        (set_tensor("common", lambda t: t[None]), "'common' as float32 of shape"),
        (set_tensor("scale", lambda t: t * 0), "no scale"),
        (set_tensor("words", lambda t: t | 0x80), "not UTF-8"),
        (set_tensor("words", lambda t: t[:0]), "'words'"),
    ],
)
def test_a_hostile_file_is_refused_though_its_seal_fits(tmp_path, content, change, message):
    with pytest.raises(CorruptError, match=message):
        file.load(put(tmp_path, changed(content, change)))


def test_a_file_of_a_later_version_is_refused(tmp_path, content):
    with pytest.raises(InvalidError, match="version '2'"):
        file.load(put(tmp_path, changed(content, set_fact("version", "2"))))
