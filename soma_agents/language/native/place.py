"""Where the compiled kernels lie: beside their source, named by its hash."""

import hashlib
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
INCLUDED = SOURCE.with_name("product.h")


def library() -> Path:
    """The file that holds the kernels as the source has them now."""
    digest = hashlib.sha256(INCLUDED.read_bytes() + SOURCE.read_bytes()).hexdigest()
    return SOURCE.with_name(f"kernels-{digest[:12]}.so")
