"""Runs `igpt-jobs` as a user does: another process, its exit code, its two outputs."""

import subprocess
import sys
from pathlib import Path


def igpt(
    *arguments: str, folder: Path, store: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """`igpt-jobs arguments` in a folder; `store` is given as --store."""
    chosen = ["--store", store] if store else []
    return subprocess.run(
        [sys.executable, "-m", "igpt.cli", *arguments, *chosen],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
