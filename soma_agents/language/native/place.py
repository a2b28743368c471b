"""Where the compiled kernels lie: beside their source, named by what they need and its hash."""

import hashlib
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("kernels.c")


class Instructions(NamedTuple):
    """What a library needs of a processor."""

    flags: tuple[str, ...]
    """For the compiler."""
    fixed_rows: int
    """What a step costs however few its rows are, in rows (`python -m bench.lookup`, `step_ms`)."""


AVX512 = ("-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mavx512vnni")
INSTRUCTIONS = {
    "avx512": Instructions(AVX512, 8),
    "avx2": Instructions(("-mfma", "-mavx2"), 2),
}
"""The quickest first."""


def library(instructions: str) -> Path:
    """The file that holds the kernels as the source has them now."""
    sources = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return SOURCE.with_name(f"kernels-{instructions}-{digest[:12]}.so")
