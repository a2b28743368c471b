import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arbiters.errors import InvalidError
from soma_agents.language.linear import block_linear
from soma_agents.language.sou.blocks import BITS, decode, encode, fits, size_of, split

BITS_A_VALUE = {"F32": 32, "F16": 16, "BF16": 16, "Q8": 8.25, "Q5": 5.31, "Q4": 4.56, "Q2": 2.56}
ERRORS = {"F32": 0, "F16": 3e-4, "BF16": 3e-3, "Q8": 0.01, "Q5": 0.05, "Q4": 0.09, "Q2": 0.4}


def there_and_back(kind, weight, dtype=torch.float32):
    raw = memoryview(bytearray(encode(kind, weight)))
    assert len(raw) == size_of(kind, tuple(weight.shape))
    return decode(kind, tuple(weight.shape), raw, dtype)


def normal(rows, columns, scale=0.02):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * scale


@pytest.mark.parametrize("kind", ERRORS)
def test_numbers_come_back_as_near_as_their_bits_allow(kind):
    weight = normal(70, 576)

    found = there_and_back(kind, weight)

    assert (found - weight).norm() <= ERRORS[kind] * weight.norm()
    assert size_of(kind, (70, 576)) * 8 / weight.numel() == pytest.approx(BITS_A_VALUE[kind], 0.01)


@pytest.mark.parametrize("kind", ["Q4", "Q2", "Q5"])
def test_what_lies_on_the_grid_is_kept_nearly_exactly(kind):
    q = torch.randint(0, 2 ** BITS[kind], (64, 64), generator=torch.Generator().manual_seed(1))
    q[:, ::32], q[:, 1::32] = 0, 2 ** BITS[kind] - 1
    weight = q * 0.013 - 0.02

    assert (there_and_back(kind, weight) - weight).abs().max() < 0.013 / 20


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["Q8", "Q5", "Q4", "Q2"]),
    value=st.floats(-1e4, 1e4, width=32),
    noise=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    seed=st.integers(0, 9),
)
def test_no_value_moves_by_more_than_its_group_spans(kind, value, noise, seed):
    torch.manual_seed(seed)
    weight = torch.randn(4, 128) * noise
    weight[1] += value
    weight[2, ::2] = 0

    found = there_and_back(kind, weight)

    span = weight.abs().amax() + 1e-3
    assert (found - weight).abs().max() <= span / (2 ** BITS[kind] - 1) * 1.6


@pytest.mark.parametrize("kind", ["Q8", "Q5", "Q4", "Q2"])
def test_multiplying_from_blocks_equals_multiplying_the_values(kind):
    weight, x = normal(128, 192), torch.randn(5, 192).bfloat16()
    raw = memoryview(bytearray(encode(kind, weight)))

    product = block_linear(split(kind, (128, 192), raw), BITS[kind])(x).float()

    expected = x.float() @ decode(kind, (128, 192), raw, torch.float32).T
    assert (product - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("kind", ["F16", "Q8", "Q4"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, 1e30])
def test_broken_numbers_are_never_written(kind, broken):
    weight = normal(64, 64)
    weight[3, 3] = broken

    with pytest.raises(InvalidError, match="NaN or infinity"):
        encode(kind, weight)


def test_rows_without_whole_groups_are_not_quantised():
    assert fits("Q4", (7, 96))
    assert not fits("Q8", (7, 96))
    assert not fits("Q4", (96,))

    with pytest.raises(InvalidError, match="multiples of 64"):
        size_of("Q8", (7, 96))
