"""Every shell example of docs/api.md runs against a real socket, in its order."""

import asyncio
import os
import re
import shutil
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
REFUSED = ("models/rollback", "soma-v0/promote")
"""Nothing was promoted yet: these are answered with 409 on a fresh SOMA."""


def examples():
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [block for block in blocks if "SOMA=http" not in block]


def checked(script):
    """The same with failing requests failing, except those that a fresh SOMA refuses."""
    lines = script.replace("\\\n", " ").splitlines()
    return "\n".join(
        line if line.endswith(REFUSED) else line.replace("curl -s", "curl -sS --fail-with-body")
        for line in lines
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples use curl")
async def test_the_examples_run(url):
    script = "set -euo pipefail\n" + "\n".join(f"{checked(one)}\necho" for one in examples())

    shell = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        script,
        env=os.environ | {"SOMA": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await shell.communicate()

    assert shell.returncode == 0, said.decode()[-2000:]


def test_every_path_of_the_interface_is_documented(soma_paths):
    page = PAGE.read_text()

    missing = [path for path in soma_paths if path.split("{")[0].rstrip("/") not in page]
    assert missing == []


@pytest.fixture
def soma_paths(soma):
    return list(soma.app.openapi()["paths"])
