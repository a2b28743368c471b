"""Where the compiled kernels lie: beside their source, named by its hash."""

import hashlib
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")


def library() -> Path:
    """The file that holds the kernels as the source has them now."""
    sources = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return SOURCE.with_name(f"kernels-{digest[:12]}.so")
