"""Which files a source tree consists of, by what git says of it, or by a walk where git has no say.

Git is only ever asked, never told: no command here writes, not even to refresh its index. Its
ignore rules count, those of the user too; none of the user's other settings does. A source tree
that is no checkout is walked, past the folders that tools leave behind. A checkout whose git is
missing, or does not answer, is an error: nobody else can tell what is ignored.
"""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from igpt.errors import UserError
from igpt.runs.archive import BYTECODE, to_text, walk

_PATIENCE = 120.0  # seconds for an answer of git
_SUBMODULE = "160000"  # the mode of one in the index

#: Variables that point git at another repository than that of its folder, as in a hook.
_ELSEWHERE = {
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
}

#: Folders that a walk passes over: history, environments, caches, and this program's own output.
_PASSED_OVER = frozenset(
    {
        BYTECODE,
        ".git",
        ".hypothesis",
        ".import_linter_cache",
        ".ipynb_checkpoints",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".venv",
        "igpt-store",
        "node_modules",
        "venv",
    }
)


@dataclass(frozen=True)
class Listing:
    """The files of a source tree, by their paths from its root (see `archive.File`)."""

    git: bool  # whether git made it; a walk knows no tracked files
    commit: str | None = None
    tracked: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)  # tracked, and not as in the commit
    untracked: set[str] = field(default_factory=set)  # a folder with a slash: another repository
    #: Tracked, but git was told not to look at them: the mode and the blob it takes them for.
    unwatched: dict[str, tuple[int, str]] = field(default_factory=dict)


def list_files(root: Path, package: str) -> Listing:
    """The files below `root`, the folder that holds the package. Raises UserError."""
    top = next((above for above in (root, *root.parents) if (above / ".git").exists()), None)
    if top:
        listing = _ask(root, top)
        # A repository further up, a home folder's say, may have nothing to do with the tree.
        if top == root or f"{package}/__init__.py" in listing.tracked:
            return listing
    found = {path for path in walk(root, _PASSED_OVER) if path.rpartition("/")[2] != ".git"}
    return Listing(git=False, untracked=found)


def _ask(folder: Path, top: Path) -> Listing:
    """What git says of a folder in the working tree `top`, with its submodules."""
    # Commit, changes and untracked files from one answer, so that they are of one moment.
    options = "-z --porcelain=v2 --branch --no-ahead-behind --no-renames --untracked-files=all"
    answer = _git(folder, "status", *options.split(), "--ignore-submodules=none", "--", ".")
    above = "" if folder == top else f"{to_text(os.fsencode(folder.relative_to(top)))}/"
    commit, changed, untracked = None, set(), set()
    for entry in answer:
        kind, _, rest = entry.partition(" ")
        if kind == "#" and rest.startswith("branch.oid ") and not rest.endswith("(initial)"):
            commit = rest.removeprefix("branch.oid ")
        elif kind == "?":
            untracked.add(rest.removeprefix(above))
        elif kind in ("1", "u"):
            *about, path = rest.split(" ", 7 if kind == "1" else 9)
            if _differs(state=about[0], submodule=about[1]):
                changed.add(path.removeprefix(above))
    listing = Listing(True, commit, changed=changed, untracked=untracked)
    for entry in _git(folder, "ls-files", "-z", "--stage", "-v"):
        facts, _, path = entry.partition("\t")
        tag, mode, blob, _ = facts.split(" ")
        if mode == _SUBMODULE:
            inside = folder / path
            if (inside / ".git").exists():  # else it was never checked out
                _include(listing, _ask(inside, inside), path)
            continue
        listing.tracked.add(path)
        if tag == "S" or tag.islower():  # skip-worktree, assume-unchanged
            listing.unwatched[path] = (int(mode, 8), blob)
    return listing


def _differs(*, state: str, submodule: str) -> bool:
    """Whether the entry itself does: files changed in a submodule are told by the submodule."""
    return submodule[0] == "N" or submodule[1] == "C" or state[0] != "."


def _include(listing: Listing, inner: Listing, name: str) -> None:
    """Adds the listing of the submodule called `name`."""
    listing.tracked.update(f"{name}/{path}" for path in inner.tracked)
    listing.changed.update(f"{name}/{path}" for path in inner.changed)
    listing.untracked.update(f"{name}/{path}" for path in inner.untracked)
    listing.unwatched.update({f"{name}/{path}": seen for path, seen in inner.unwatched.items()})


def _git(folder: Path, *arguments: str) -> list[str]:
    """The NUL-separated answer of git. Raises UserError where there is none."""
    environment = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    try:
        answer = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *arguments],  # which would start a program
            cwd=folder,
            env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        raise UserError(
            f"{folder} is in a git checkout, and there is no git on PATH",
            expected="git, which alone can tell what is to be shipped and what is ignored",
            mend="Install git, or load its module",
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"git {arguments[0]} in {folder} has not ended after {_PATIENCE:.0f} s",
            mend="Name large folders of other files in .gitignore",
        ) from None
    if answer.returncode:
        said = " ".join(answer.stderr.decode(errors="replace").split())
        raise UserError(
            f"git cannot tell what is in {folder}: {said}", mend="Mend that, then submit again"
        )
    return to_text(answer.stdout).split("\0")[:-1]
