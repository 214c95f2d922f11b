"""Where a run came from: command, user, host, code and package versions. No secrets.

The environment is not recorded, and what looks like a secret in the command line is blanked: a
run's record is readable by all who reach the bucket.
"""

import getpass
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from igpt.runs.redaction import redact

_PACKAGES = ("igpt-jobs", "numpy", "ray", "scikit-learn", "torch", "submitit", "webdataset")
_DIFF_LIMIT = 200_000


def provenance(arguments: list[str], folder: Path) -> dict[str, Any]:
    """The record of a submission: plain data for `provenance.json`.

    arguments: the command line. folder: where it was typed; its git commit and difference are
    recorded where it is a checkout.
    """
    return {
        "command": shlex.join(redact(word) for word in arguments),
        "time": time.time(),
        "user": _user(),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "git": _git(folder),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return str(os.getuid())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    commit = _ask_git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _ask_git(folder, "diff", "HEAD") or ""
    untracked = (_ask_git(folder, "ls-files", "--others", "--exclude-standard") or "").split("\n")
    return {
        "commit": commit.strip(),
        "diff": redact(diff[:_DIFF_LIMIT]),
        "diff_truncated": len(diff) > _DIFF_LIMIT,
        "untracked": [name for name in untracked if name][:200],
    }


def _ask_git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
