"""Where the compiled kernels lie: beside their source, named by what they need and its hash."""

import hashlib
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
INSTRUCTIONS = {
    "avx512": ("-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mavx512vnni"),
    "avx2": ("-mfma", "-mavx2"),
}
"""What a compiler is told of the processors that a library is for, the quickest first."""


def library(instructions: str) -> Path:
    """The file that holds the kernels as the source has them now."""
    sources = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return SOURCE.with_name(f"kernels-{instructions}-{digest[:12]}.so")
