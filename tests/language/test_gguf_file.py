import struct

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arbiters.errors import CorruptError, InvalidError, NotFoundError
from soma_agents.language.gguf_file import GgufFile
from soma_agents.language.linear import stored_linear
from soma_agents.language.model import load_model


@pytest.fixture
def sample(tmp_path):
    """A file written by the gguf package."""
    path = tmp_path / "sample.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_array("words", ["a", "é"])
    writer.add_array("numbers", [1, 2])
    weight = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
    writer.add_tensor("plain", weight)
    kinds = ("Q4_1", "Q4_0", "Q8_0")
    for kind in (gguf.GGMLQuantizationType[name] for name in kinds):
        writer.add_tensor(kind.name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_the_gguf_package_wrote_is_read_back(sample):
    file = GgufFile(sample)

    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["words"] == ["a", "é"]
    assert file.metadata["numbers"] == [1, 2]
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(sample).tensors}
    for name, tensor in theirs.items():
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(file.tensor(name), expected)


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_0", "Q8_0"])
def test_multiplying_from_stored_blocks_equals_multiplying_the_values(sample, kind):
    file = GgufFile(sample)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    order = torch.arange(63, -1, -1)

    product = stored_linear(file, (kind, kind), {kind: order})(x)

    weight = torch.from_numpy(file.tensor(kind))[order]
    expected = x.float() @ torch.cat((weight, weight)).T
    assert (product.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_file_cut_off_anywhere_is_refused(sample, tmp_path):
    whole = sample.read_bytes()
    path = tmp_path / "cut.gguf"

    for end in [0, 3, 8, 20, 50, 100, 200, len(whole) // 2, len(whole) - 40]:
        path.write_bytes(whole[:end])
        with pytest.raises(CorruptError, match="cut"):
            GgufFile(path)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "picture.gguf"
    path.write_bytes(b"\x89PNG" + bytes(100))

    with pytest.raises(CorruptError, match="begins with"):
        GgufFile(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="absent"):
        load_model(str(tmp_path / "absent.gguf"))


def test_a_declared_size_beyond_the_file_allocates_nothing(tmp_path):
    path = tmp_path / "bomb.gguf"
    key = b"k"
    array_of_bytes = struct.pack("<IIQ", 9, 0, 2**60)
    path.write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + key + array_of_bytes
    )

    with pytest.raises(CorruptError, match="announces"):
        GgufFile(path)


def test_a_tensor_with_broken_numbers_is_refused(tmp_path):
    path = tmp_path / "nan.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", np.full((1, 32), np.nan, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)

    with pytest.raises(CorruptError, match="NaN"):
        file.tensor("x")

    file.close()


def test_a_model_of_another_family_is_refused_by_name(tmp_path):
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_tensor("x", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(InvalidError, match="mamba"):
        load_model(str(path))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None
)
@given(data=st.data())
def test_flipped_bytes_never_end_in_anything_but_our_errors(sample, tmp_path, data):
    content = bytearray(sample.read_bytes())
    header = 500
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    path = tmp_path / "flipped.gguf"
    path.write_bytes(content)

    try:
        file = GgufFile(path)
        values = {name: file.tensor(name) for name in file.tensors}
    except (CorruptError, InvalidError):
        return

    assert all(np.isfinite(read).all() for read in values.values())
    shapes = {name: info.shape for name, info in file.tensors.items()}
    assert {name: read.shape for name, read in values.items()} == shapes
