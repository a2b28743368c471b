import pytest
import torch

from soma_agents.language import decoder as decoder_module
from soma_agents.language import linear as linear_module
from soma_agents.language import native
from soma_agents.language.cache import BatchCache, PromptCache
from soma_agents.language.decoder import Decoder
from soma_agents.language.linear import Stored
from soma_agents.language.model import LanguageModel
from soma_agents.language.native import kernels, loaded
from soma_agents.language.native.place import INSTRUCTIONS
from soma_agents.language.transformer import Transformer

OURS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            loaded(name) is None, reason=f"not compiled, or this processor has no {name}"
        ),
    )
    for name in INSTRUCTIONS
]


def _computed_by(name, monkeypatch):
    found = loaded(name) if name in INSTRUCTIONS else None
    for module in (linear_module, decoder_module):
        monkeypatch.setattr(module, "kernels", lambda: found)
    return found


@pytest.fixture(params=[*OURS, "torch's"])
def whose(request, monkeypatch):
    """Products by our kernels of each kind, or as where there are none."""
    _computed_by(request.param, monkeypatch)
    return request.param


@pytest.fixture(params=OURS)
def ours(request, monkeypatch):
    """Kernels of each kind that runs here."""
    return _computed_by(request.param, monkeypatch)


def blocks(bits: int, outputs=192, inputs=160) -> Stored:
    generator = torch.Generator().manual_seed(bits)
    half = 2 ** (bits - 1)
    q = torch.randint(-half, half, (outputs, inputs), generator=generator, dtype=torch.int8)
    scale, zero = torch.randn(2, outputs, inputs // 32, generator=generator).bfloat16().float()
    return Stored(bits, q, scale, zero)


def dense(stored: Stored) -> torch.Tensor:
    """What the numbers stand for."""
    scale, zero = (part.repeat_interleave(32, dim=1) for part in stored[2:])
    return stored.q * scale + zero


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Whole numbers times a step, a 127th of the largest of 32 numbers."""
    groups = x.float().view(len(x), -1, 32)
    steps = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / steps).round() * steps).view(x.shape)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", range(1, 12))
def test_a_product_with_blocks_is_the_product_with_what_they_stand_for(whose, bits, rows):
    stored = blocks(bits)
    x = torch.randn(rows, 160).bfloat16()

    y = stored.product()(x)

    exact = (rounded(x) if whose in INSTRUCTIONS else x.float()) @ dense(stored).T
    assert ((y - exact).abs() <= 0.02 * exact.abs() + 2e-2 * exact.abs().mean()).all()


@pytest.mark.usefixtures("whose")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_of_a_product_is_bit_for_bit_the_same_in_any_company(bits):
    product = blocks(bits).product()
    x = torch.randn(11, 160).bfloat16()

    together = product(x)

    for rows in range(1, 11):
        assert torch.equal(product(x[:rows]), together[:rows])


@pytest.mark.parametrize("rows", range(1, 12))
def test_a_product_with_a_bf16_matrix_is_torchs(ours, rows):
    weight, x = torch.randn(192, 160).bfloat16(), torch.randn(rows, 160).bfloat16()

    y = ours.dense(weight)(x)

    torch.testing.assert_close(y.float(), x.float() @ weight.float().T, rtol=1e-2, atol=1e-2)


def test_a_row_of_a_dense_product_is_bit_for_bit_the_same_in_any_company(ours):
    product, x = ours.dense(torch.randn(192, 160).bfloat16()), torch.randn(11, 160).bfloat16()

    together = product(x)

    for rows in range(1, 11):
        assert torch.equal(product(x[:rows]), together[:rows])


@pytest.mark.parametrize("sizes", [(200, 160), (192, 168)])
def test_a_matrix_whose_sizes_do_not_fit_is_left_to_torch(ours, sizes):
    assert ours.dense(torch.zeros(sizes).bfloat16()) is None


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [1e-30, 1, 1e30])
def test_rounding_to_bytes_costs_a_product_less_than_a_hundredth(bits, size):
    stored = blocks(bits)
    x = ((torch.randn(8, 160) + torch.arange(-4, 4)[:, None]) * size).bfloat16()

    y = stored.product()(x)

    exact = x.double() @ dense(stored).double().T
    assert (y - exact).norm() <= 0.01 * exact.norm()


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_product_of_a_broken_number_is_broken_in_its_row_alone(bits, broken):
    x = torch.randn(3, 160).bfloat16()
    x[1, 70] = broken

    y = blocks(bits).product()(x)

    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_product_of_zeros_is_zero(bits):
    assert not blocks(bits).product()(torch.zeros(2, 160).bfloat16()).any()


def test_norm_and_activation_are_torchs(ours):
    x = torch.randn(5, 96).bfloat16() * torch.logspace(-3, 3, 5)[:, None].bfloat16()
    weight = torch.randn(96).bfloat16()

    normed = ours.rms_norm(weight, 1e-5)(x)
    activated = ours.gated_silu(x)

    torch.testing.assert_close(
        normed.float(), torch.rms_norm(x.float(), (96,), weight.float(), 1e-5), rtol=1e-2, atol=1e-6
    )
    gate, up = x.float().chunk(2, -1)
    torch.testing.assert_close(
        activated.float(), torch.nn.functional.silu(gate) * up, rtol=1e-2, atol=1e-6
    )


def test_nan_stays_nan(ours):
    x = torch.full((1, 64), torch.nan, dtype=torch.bfloat16)

    assert ours.rms_norm(x[0], 1e-5)(x).isnan().all()
    assert ours.gated_silu(x).isnan().all()
    assert (
        ours.attend(
            x.view(1, 2, 32)[:, [0, 1, 1]],
            torch.zeros(1, 2, 64, 32).bfloat16(),
            (torch.tensor([0]), torch.tensor([3])),
            (x[:, :32], x[:, :32]),
            window=0,
        )
        .isnan()
        .all()
    )


@pytest.mark.usefixtures("whose")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rotary_dim": 20},
        {"head_norm": True, "post_norm": True},
        {"window": 24, "global_every": 2},
        {"activation": "gelu_tanh", "norm": "layer"},
    ],
    ids=str,
)
def test_decoding_gives_the_logits_of_reading_everything_again(make_config, changes):
    config = make_config(head_dim=32, **changes)
    transformer = Transformer.random(config, seed=2).requires_grad_(requires_grad=False).bfloat16()
    decoder = Decoder(LanguageModel("base", "tiny", config, transformer, None))
    prompts = [torch.arange(3, 3 + length)[None] for length in (5, 40, 70)]
    cache = BatchCache(config, torch.bfloat16)

    with torch.inference_mode():
        for prompt in prompts:
            read = PromptCache(config, prompt.shape[1], torch.bfloat16)
            transformer.hidden(prompt, cache=read)
            cache.join(read)
        for token in (9, 10, 11):
            logits = decoder.step([[token]] * 3, cache, None)
            for row in range(3):
                cache.keep(row, 1)
            prompts = [torch.cat((p, torch.tensor([[token]])), dim=1) for p in prompts]

        exact = [transformer.float()(prompt)[0, -1] for prompt in prompts]
    assert (logits - torch.stack(exact)).abs().max() <= 0.05 * torch.stack(exact).abs().max()


def test_without_a_compiled_library_there_are_no_kernels(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "library", lambda _: tmp_path / "absent.so")

    assert kernels.__wrapped__() is None
