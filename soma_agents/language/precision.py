"""Which number format a device multiplies matrices in fastest; known without loading torch.

A processor without instructions for bfloat16 multiplies in it many times slower than in float32.
The processor's own word decides and not a clock, so that a machine always finds the same.
"""

from pathlib import Path
from typing import Literal

Format = Literal["bfloat16", "float32"]

CPUINFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 with bfloat16",
    "bf16": "ARM's bfloat16",
}
"""A flag of a processor → what it multiplies bfloat16 with, the fastest first."""


def bfloat16_instructions(cpuinfo: Path = CPUINFO) -> str:
    """What this machine's processor multiplies bfloat16 with; "" if it has nothing, or does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:  # a system without such a file
        return ""
    said = (line.partition(":") for line in lines)
    flags = next((f.split() for name, _, f in said if name.strip() in {"flags", "Features"}), [])
    return next((words for flag, words in INSTRUCTIONS.items() if flag in flags), "")


def fastest_format(device: str = "cpu") -> Format:
    """The fastest format of a kind of device, as torch names it: of a GPU always bfloat16."""
    return "bfloat16" if device != "cpu" or bfloat16_instructions() else "float32"


def format_for(served: Format, device: str = "cpu") -> Format:
    """What a model that is served in a format is trained and judged in.

    bfloat16 stands for whatever is fast; who serves in float32 gets no less anywhere.
    """
    return "float32" if served == "float32" else fastest_format(device)
