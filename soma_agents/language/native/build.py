"""Compiles what is in C: `python -m soma_agents.language.native.build`, a step of `make setup`."""

import shutil
import subprocess
import sys
from pathlib import Path

from soma_agents.language.native.place import SOURCE, library
from soma_agents.language.symbols import compiled

ANYWHERE = ("-O3", "-std=gnu11", "-shared", "-fPIC")
FLAGS = (
    *(*ANYWHERE, "-fopenmp"),
    *("-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mavx512vnni"),
)


def build() -> Path | None:
    """The kernels' library, compiled if it is not there yet; None where no compiler can."""
    return _built(SOURCE, library(), FLAGS)


def build_uids() -> Path | None:
    """The same for the ids' loop, which any processor runs."""
    return _built(compiled.SOURCE, compiled.library(), ANYWHERE)


def _built(source: Path, target: Path, flags: tuple[str, ...]) -> Path | None:
    if target.exists():
        return target
    if (compiler := shutil.which("cc")) is None:
        return None
    fresh = target.with_suffix(".new")
    command = [compiler, *flags, "-o", str(fresh), str(source)]
    if subprocess.run(command, check=False, capture_output=True).returncode:  # noqa: S603
        return None
    for old in target.parent.glob(f"*{target.suffix}"):
        old.unlink()
    return fresh.rename(target)


if __name__ == "__main__":
    build_uids()
    found = build()
    sys.stdout.write(
        "soma: compiled the decoding kernels\n"
        if found
        else "soma: no C compiler for this processor's AVX512-BF16 and -VNNI; decoding uses torch alone\n"
    )
