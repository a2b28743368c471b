"""Where the compiled kernels lie: beside their source, named by its hash."""

import hashlib
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")


def library() -> Path:
    """The file that holds the kernels as the source has them now."""
    return SOURCE.with_name(f"kernels-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so")
