"""The page in a real browser: it shows what there is, and shows words as words."""

import asyncio
import shutil

import pytest

BROWSER = shutil.which("chromium")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=4000",
    "--dump-dom",
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Debian's chromium")


async def seen(address, profile):
    """The page's document after its script has run."""
    browser = await asyncio.create_subprocess_exec(
        BROWSER,
        *OPTIONS,
        f"--user-data-dir={profile}",
        address,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await asyncio.wait_for(browser.communicate(), 60)
    return output.decode()


async def test_the_page_shows_who_answers_what_was_said_and_what_is_known(soma, url, tmp_path):
    await soma.http.post("/api/reason", json={"message": "My name is Mira. <b>bold</b>"})
    await soma.http.get("/api/profile")

    page = await seen(url, tmp_path / "browser")

    assert '<p id="champion">soma-v0</p>' in page
    assert "My name is Mira." in page
    assert "<dd>Mira</dd>" in page
    assert "<b>bold</b>" not in page


async def test_the_api_page_lists_the_endpoints_without_help_from_elsewhere(url, tmp_path):
    page = await seen(f"{url}/docs", tmp_path / "browser")

    assert "/v1/chat/completions" in page
    assert "/api/models/rollback" in page
    assert "https://" not in page
