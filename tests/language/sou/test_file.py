import json
import resource
import struct
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arbiters.errors import CorruptError, InvalidError, NotFoundError, SomaError
from soma_agents.language.model import load_model
from soma_agents.language.sou.card import Card, Parameters, Rule
from soma_agents.language.sou.checkpoint import SouCheckpoint
from soma_agents.language.sou.header import HEAD, HEADER, MAGIC, head_of
from soma_agents.language.sou.reader import SouFile
from soma_agents.language.sou.writer import Draft, Planned, write_sou
from soma_agents.language.source import base_id

CARD = Card(
    system="Be brief.\nÄ",
    parameters=Parameters(temperature=0.5, stop=("\n", "x")),
    personality={"warmth": 0.75},
    rules=(Rule(effect="deny", user="bob"), Rule(effect="allow", user="*")),
)


def resealed(path, change):
    """Rewrite the directory as an attacker would: with a seal that fits."""
    content = path.read_bytes()
    *_, size = HEADER.unpack_from(content)
    directory = json.loads(content[HEAD : HEAD + size])
    change(directory)
    encoded = json.dumps(directory, separators=(",", ":"), ensure_ascii=False).encode()
    padded = encoded + b" " * (size - len(encoded))  # places stay true where it still fits
    path.write_bytes(
        head_of(padded, len(content) - size + len(padded)) + padded + content[HEAD + size :]
    )


def test_all_that_was_written_is_read_back(sou, small):
    path = sou("BF16", card=CARD, metadata={"licence": "Apache-2.0"})

    file = SouFile(path)

    file.verify()
    assert file.directory.config == small.config
    assert file.directory.card == CARD
    assert file.directory.metadata == {"weights": "BF16", "licence": "Apache-2.0"}
    assert file.text("template") == small.tokenizer.template
    assert json.loads(file.text("tokenizer")) == json.loads(small.tokenizer.to_json())


def test_the_same_model_gives_the_same_bytes(sou):
    first = sou("Q4", card=CARD).read_bytes()

    assert sou("Q4", card=CARD).read_bytes() == first


def test_weights_in_the_models_own_format_are_not_copied(sou):
    file = SouFile(sou("BF16"))

    once, again = (file.tensor("blocks.0.down.weight", torch.bfloat16) for _ in range(2))

    assert once.data_ptr() == again.data_ptr()


def test_a_model_is_known_by_its_seal(sou):
    path = sou("Q8")

    assert base_id(path) == f"base-{SouFile(path).seal[:16]}" == load_model(str(path)).id
    assert base_id(sou("Q4")) != base_id(path)


@pytest.mark.parametrize("content", [b"", b"GGUF" + bytes(200), MAGIC, MAGIC + bytes(200)])
def test_what_is_no_sou_file_is_refused(tmp_path, content):
    path = tmp_path / "x.sou"
    path.write_bytes(content)

    with pytest.raises(InvalidError, match=r"x\.sou"):
        SouFile(path)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "absent.sou"):
        with pytest.raises(NotFoundError, match="no model file"):
            SouFile(path)


def test_a_file_cut_off_anywhere_is_refused(sou, tmp_path):
    whole = sou("Q8").read_bytes()
    cut = tmp_path / "cut.sou"

    for end in (1, 8, 40, HEAD, 500, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:end])
        with pytest.raises(InvalidError):
            SouFile(cut)


def test_a_newer_version_is_refused_by_its_number(sou):
    path = sou("Q8")
    content = bytearray(path.read_bytes())
    content[8:12] = struct.pack("<I", 2)
    path.write_bytes(content)

    with pytest.raises(InvalidError, match=r"version 2\.0; this SOMA reads 1"):
        SouFile(path)


def test_a_changed_bit_is_found_wherever_it_is(sou):
    path = sou("Q4")
    whole = path.read_bytes()

    for at in range(0, len(whole), len(whole) // 60):
        content = bytearray(whole)
        content[at] ^= 16
        path.write_bytes(content)
        with pytest.raises((CorruptError, InvalidError)):
            SouFile(path).verify()


def test_loading_finds_a_changed_weight(sou):
    path = sou("Q8")
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)

    with pytest.raises(CorruptError, match="not what was written"):
        load_model(str(path))


HOSTILE = {
    "a size beyond the file": lambda d: d["tensors"][3].update(bytes=2**62),
    "a place beyond the file": lambda d: d["tensors"][3].update(at=2**62),
    "two tensors in one place": lambda d: d["tensors"][4].update(at=d["tensors"][3]["at"]),
    "a shape of a billion rows": lambda d: d["tensors"][0].update(shape=[2**40, 64]),
    "a shape that overflows": lambda d: d["tensors"][0].update(shape=[2**40, 2**40, 2**40]),
    "a negative size": lambda d: d["tensors"][0].update(bytes=-1),
    "no dimension": lambda d: d["tensors"][0].update(shape=[]),
    "another number format": lambda d: d["tensors"][0].update(kind="Q3"),
    "a name twice": lambda d: d["tensors"][1].update(name=d["tensors"][0]["name"]),
    "a tensor less": lambda d: d["tensors"].pop(),
    "an unknown field": lambda d: d.update(code="import os"),
    "a billion layers": lambda d: d["config"].update(layers=10**9),
    "a billion heads": lambda d: d["config"].update(heads=2 * 10**9),
    "a context without end": lambda d: d["config"].update(context=10**15),
    "a width that overflows": lambda d: d["config"].update(d_ff=2**62),
    "no heads": lambda d: d["config"].update(kv_heads=0),
    "text for a number": lambda d: d["config"].update(layers="2"),
    "true for a number": lambda d: d["config"].update(layers=True),
    "no finite number": lambda d: d["config"].update(norm_eps=float("inf")),
    "a token that is none": lambda d: d.update(eos_ids=[10**6]),
    "an adapter without matrices": lambda d: d.update(
        adapter={"rank": 4, "alpha": 1.0, "targets": ["q_proj"]}
    ),
    "a hash that is none": lambda d: d["tensors"][0].update(sha256="x"),
}


def test_a_directory_written_by_others_is_read_if_it_is_sound(sou):
    path = sou("Q8", metadata={"room": "x" * 200})

    resealed(path, lambda directory: directory.update(metadata={}))

    assert load_model(str(path)).config == SouFile(path).directory.config


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_directory_with_a_fitting_seal_is_refused(sou, what):
    path = sou("Q8", metadata={"room": "x" * 200})

    def change(directory):
        directory["metadata"] = {}
        HOSTILE[what](directory)

    resealed(path, change)

    with pytest.raises((InvalidError, CorruptError)):
        load_model(str(path))


def test_a_tokenizer_with_an_id_beyond_the_embeddings_is_refused(small, tmp_path):
    said = json.loads(small.tokenizer.to_json())
    said["model"]["vocab"]["zz"] = 4_000_000_000
    weights = small.transformer.state_dict()
    tensors = {
        name: Planned("F32", tuple(weight.shape), lambda weight=weight: weight)
        for name, weight in weights.items()
        if name != "head.weight"
    }
    path = tmp_path / "x.sou"
    write_sou(path, Draft(small.config, tensors, tokenizer=json.dumps(said)))

    with pytest.raises(CorruptError, match="the model 320"):
        SouCheckpoint(path).tokenizer()


def test_a_failed_write_leaves_the_old_file_and_no_litter(small, sou):
    path = sou("Q8")
    before = path.read_bytes()
    broken = Planned("F16", (4, 64), lambda: torch.full((4, 64), torch.nan))

    with pytest.raises(InvalidError, match=r"'embedding\.weight'"):
        write_sou(path, Draft(small.config, {"embedding.weight": broken}))

    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def mutated(draw, directory):
    """Put something else anywhere into the directory."""
    value, key, holder = directory, None, None
    while isinstance(value, (dict, list)) and value:
        holder = value
        key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        value = value[key]
    numbers = st.sampled_from([0, -1, 1, 3, 64, 2**31, 2**63 - 1, 2**64, 1.5, 1e308])
    others = st.sampled_from([None, "", "x", "F32", "Q2", [], [1], {}, True])
    holder[key] = draw(numbers | others)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)
@given(data=st.data())
def test_a_mutated_directory_ends_in_our_errors_or_in_a_model_of_the_files_size(sou, data):
    path = sou("Q8", metadata={"room": "x" * 200})

    def change(directory):
        directory["metadata"] = {}
        for _ in range(data.draw(st.integers(1, 3))):
            mutated(data.draw, directory)

    resealed(path, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with suppress(SomaError):
        load_model(str(path))

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000  # kB


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(data=st.data())
def test_flipped_bytes_end_in_our_errors(sou, data):
    path = sou("Q4")
    content = bytearray(path.read_bytes())
    for at in data.draw(st.sets(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)

    with pytest.raises((CorruptError, InvalidError)):
        SouFile(path).verify()
