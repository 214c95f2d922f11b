"""A real browser opens the page from disk, without a network and without a complaint."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from igpt.report import render
from tests.report.example import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
]


@pytest.fixture
def chromium() -> str:
    if CHROMIUM is None and os.environ.get("CI"):
        pytest.fail("CI must install chromium")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    return CHROMIUM


def opened(chromium: str, page: Path, *flags: str) -> tuple[str, list[str]]:
    """The document after loading, and what the browser's console said."""
    profile = page.parent / "profile"
    found = subprocess.run(
        [chromium, *FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    )
    return found.stdout, [line for line in found.stderr.splitlines() if ":CONSOLE" in line]


def test_the_page_opens_offline_without_a_complaint(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(report()), encoding="utf-8")
    document, complaints = opened(chromium, page)
    assert complaints == []
    assert document.count("<svg") == 4
    assert document.count("<img") == 68
    assert "iGPT-S on CIFAR-10" in document


def test_the_browser_would_complain(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    text = render(report()).replace("</main>", "<img src='http://example.org/x.png'></main>")
    page.write_text(text, encoding="utf-8")
    _, complaints = opened(chromium, page)
    assert any("Content Security Policy" in line for line in complaints)
