import json

import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer

from arbiters.errors import CorruptError, InvalidError, NotFoundError
from soma_agents.language.symbols.bpe import Bpe
from tests.language.symbols.samples import SAMPLE, texts


def changed(bpe, **model):
    content = json.loads(bpe.source)
    content["model"] |= model
    return json.dumps(content)


@given(text=texts())
@settings(max_examples=50, deadline=None)
def test_tokenizers_gives_the_same_ids_from_the_same_file(bpe, text):
    plain = text.replace("<|end|>", "")  # tokenizers always reads special tokens
    peer = Tokenizer.from_str(bpe.source)

    assert bpe.encode(plain).tolist() == peer.encode(plain, add_special_tokens=False).ids


def test_other_readers_of_the_file_are_told_to_look_whole_words_up_first(bpe):
    assert json.loads(bpe.source)["model"]["ignore_merges"] is True


def test_a_saved_vocabulary_is_the_one_that_is_loaded(bpe, tmp_path):
    bpe.save(tmp_path / "tokenizer.json")

    loaded = Bpe.load(tmp_path / "tokenizer.json")

    assert loaded.encode(SAMPLE).tolist() == bpe.encode(SAMPLE).tolist()
    assert loaded.special == {"<|end|>": 399}


def test_a_special_token_written_in_a_text_is_ordinary_text(bpe):
    ids = bpe.encode("a<|end|>b")

    assert bpe.special["<|end|>"] not in ids
    assert bpe.decode(ids) == b"a<|end|>b"
    assert bpe.decode([bpe.special["<|end|>"]]) == b"<|end|>"


def test_training_gives_exactly_the_size_asked_for(bpe):
    assert bpe.vocab_size == 400


def test_training_twice_gives_the_same_vocabulary(bpe):
    again = Bpe.train([SAMPLE * 3], 400, special=("<|end|>",))

    assert again.source == bpe.source


def test_a_vocabulary_larger_than_the_data_supports_is_refused_with_what_it_supports():
    with pytest.raises(InvalidError, match=r"vocabulary of 5000 is more than .* they give 2\d\d"):
        Bpe.train(["a small text"], 5000)


def test_a_vocabulary_without_room_for_all_bytes_is_refused():
    with pytest.raises(InvalidError, match="need 257"):
        Bpe.train([SAMPLE], 256, special=("<|end|>",))


def test_the_byte_level_pre_tokenizer_alone_cuts_as_gpt2_does(bpe):
    content = json.loads(bpe.source)
    alone = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    source = json.dumps(content | {"pre_tokenizer": alone})
    text = "Hello  world's 1234\n\n  end "

    ids = Bpe(source).encode(text).tolist()

    assert ids == Tokenizer.from_str(source).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("", CorruptError, "no tokenizer.json"),
        ("[]", CorruptError, "no tokenizer.json"),
        ("[" * 100_000, CorruptError, "no tokenizer.json"),
        ('{"model": {"type": "WordPiece"}}', InvalidError, "'WordPiece'"),
        ('{"model": {"type": "BPE"}, "normalizer": {"type": "NFC"}}', InvalidError, "reversed"),
        ('{"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Metaspace"}}', InvalidError, "Metaspace"),
    ],
)  # fmt: skip
def test_a_file_that_is_something_else_is_refused(source, error, says):
    with pytest.raises(error, match=says):
        Bpe(source)


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        ({"vocab": {}}, CorruptError, "damaged"),
        ({"vocab": {"a": "x"}}, CorruptError, "damaged"),
        ({"vocab": {"日": 0}, "merges": []}, CorruptError, "damaged"),
        ({"vocab": {"a": 0, "b": 0}, "merges": []}, CorruptError, "one id"),
        ({"vocab": {"a": 0}, "merges": []}, InvalidError, "no token for byte 0x00"),
        ({"merges": [["no", "thing"]]}, CorruptError, "damaged"),
        ({"merges": 7}, CorruptError, "damaged"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(bpe, model, error, says):
    with pytest.raises(error, match=says):
        Bpe(changed(bpe, **model))


def test_an_id_far_beyond_the_others_is_refused_before_room_is_made_for_it(bpe):
    vocabulary = json.loads(bpe.source)["model"]["vocab"]

    with pytest.raises(CorruptError, match="1099511627776"):
        Bpe(changed(bpe, vocab=vocabulary | {"far": 1 << 40}))


def test_ids_that_do_not_follow_the_merges_are_refused(bpe):
    merges = json.loads(bpe.source)["model"]["merges"]

    with pytest.raises(InvalidError, match="order of its merges"):
        Bpe(changed(bpe, merges=merges[::-1]))


def test_a_vocabulary_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"absent\.json"):
        Bpe.load(tmp_path / "absent.json")
