import pytest

from soma_agents.language import precision
from soma_agents.language.precision import bfloat16_instructions, fastest_format, format_for

X86 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 avx2 {}fma\nbugs\t\t: bf16\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}i8mm\n"


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """A processor that says this of itself."""

    def says(text):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(precision, "bfloat16_instructions", lambda: read(tmp_path / "cpuinfo"))
        return read(tmp_path / "cpuinfo")

    read = bfloat16_instructions
    return says


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (X86.format("avx512_bf16 "), "AVX-512 with bfloat16"),
        (X86.format("avx512_bf16 amx_bf16 "), "AMX"),
        (ARM.format("bf16 "), "ARM's bfloat16"),
        (X86.format(""), ""),
        (ARM.format(""), ""),
        ("", ""),
    ],
)
def test_a_processor_computes_in_bfloat16_where_it_has_instructions_for_it(processor, text, words):
    assert processor(text) == words

    assert fastest_format() == ("bfloat16" if words else "float32")


def test_a_system_that_says_nothing_of_its_processor_has_none(tmp_path):
    assert not bfloat16_instructions(tmp_path / "none")


def test_a_gpu_computes_in_bfloat16_whatever_the_processor(processor):
    processor(X86.format(""))

    assert fastest_format("cuda") == "bfloat16"


def test_who_serves_in_float32_gets_it_everywhere(processor):
    processor(X86.format("amx_bf16 "))

    assert format_for("float32", "cuda") == format_for("float32") == "float32"
    assert format_for("bfloat16") == "bfloat16"
