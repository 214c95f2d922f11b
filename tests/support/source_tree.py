"""A source tree of the test's own, to be changed: what a user has checked out and works in."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What pretraining says with changed code.
CHANGED = "this is the changed code"


def checkout(folder: Path) -> Path:
    """A git repository with this program in it, committed; returns the folder, for PYTHONPATH."""
    folder.mkdir()
    for name in ("igpt", "jobs", "clusters", "sweeps"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy2(ROOT / name, folder / name)
    _git(folder, "init", "--quiet")
    _git(folder, "add", ".")
    _git(folder, "commit", "--quiet", "--message=all")
    return folder


def change(tree: Path) -> None:
    """Lets every pretraining with this code end at once, as a user's error that says `CHANGED`."""
    entry = tree / "igpt" / "jobs" / "entries" / "pretrain.py"
    entry.write_text(f"from igpt.errors import UserError\n\nraise UserError({CHANGED!r})\n")


def _git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True)
