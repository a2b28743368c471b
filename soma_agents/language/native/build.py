"""Compiles what is in C: `python -m soma_agents.language.native.build`, a step of `make setup`."""

import shutil
import subprocess
import sys
from pathlib import Path

from soma_agents.language.native.place import INSTRUCTIONS, SOURCE, library
from soma_agents.language.symbols import compiled

FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC")


def build() -> list[Path]:
    """The kernels' libraries, compiled where they are not there yet; none where no compiler can.

    One for each kind of processor: which one runs them is seen when they are loaded.
    """
    wanted = [library(name) for name in INSTRUCTIONS]
    for old in {*SOURCE.parent.glob("kernels-*.so")}.difference(wanted):
        old.unlink()
    every = zip(wanted, INSTRUCTIONS.values(), strict=True)
    flags = (*FLAGS, "-fopenmp")
    return [path for path, needs in every if _built(SOURCE, path, (*flags, *needs.flags))]


def build_uids() -> bool:
    """The same for the ids' loop, which any processor runs."""
    for old in {*compiled.SOURCE.parent.glob("uids-*.so")}.difference([compiled.library()]):
        old.unlink()
    return _built(compiled.SOURCE, compiled.library(), FLAGS)


def _built(source: Path, target: Path, flags: tuple[str, ...]) -> bool:
    """Whether the library is there now."""
    if target.exists():
        return True
    if (compiler := shutil.which("cc")) is None:
        return False
    fresh = target.with_suffix(".new")
    command = [compiler, *flags, "-o", str(fresh), str(source)]
    if subprocess.run(command, check=False, capture_output=True).returncode:  # noqa: S603
        return False
    fresh.rename(target)
    return True


if __name__ == "__main__":
    build_uids()
    sys.stdout.write(
        "soma: compiled the decoding kernels\n"
        if build()
        else "soma: no C compiler for x86-64 with AVX2; decoding uses torch alone\n"
    )
