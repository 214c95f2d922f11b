"""Where this machine keeps what it can make or fetch again: colour tables, shards, code."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """IGPT_CACHE, else ~/.cache/igpt-jobs. It need not exist yet."""
    chosen = os.environ.get("IGPT_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "igpt-jobs"
