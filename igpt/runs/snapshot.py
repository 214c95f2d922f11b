"""The code of a run as it was when it was submitted, whatever becomes of the working tree.

    snapshot, files = take(Path(igpt.__file__).parent)  # the client reads all files once
    publish(root, snapshot, files)                       # <store>/code/<digest>.tar.gz
    folder = unpack(root, snapshot.digest, shared)       # where workers start: first on PYTHONPATH

Shipped is the folder that holds the package: what git tracks in it, as it is in the working tree,
and what git neither tracks nor ignores. What cannot go along, or had better not, is refused aloud:
large files, credentials, links that lead out, repositories inside the repository. Never shipped
are `.git` and bytecode. From a wheel nothing is shipped, and its version is recorded instead.
"""

import errno
import fnmatch
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from igpt.errors import DataCorrupt, UserError
from igpt.runs.archive import (
    BYTECODE,
    FILES_LIMIT,
    LINK,
    TOTAL_LIMIT,
    Files,
    digest_of,
    files_in,
    holds,
    in_order,
    leads_out,
    pack,
    read_file,
    shown,
    size_of,
    to_bytes,
    write,
)
from igpt.runs.checkout import Listing, list_files
from igpt.storage import Store
from igpt.storage.files import explained

#: Bytes of one file that git does not track. `archive` has the limits of all files.
UNTRACKED_LIMIT = 10_000_000

_DISTRIBUTION = "igpt-jobs"
_TRIES = 20  # at a place that other processes take and clear at the same time
_NAMED = 5  # files that an error names

#: Names of files and folders, in lower case, that hold credentials more often than code.
_SECRET = (
    *(".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "*.keytab"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", ".pgpass", ".pypirc"),
    *("credentials", "credentials.json", "credentials.y*ml", "credentials.csv", ".git-credentials"),
    *("secrets", "secrets.json", "secrets.y*ml", "secrets.toml", ".s3cfg", ".boto", ".htpasswd"),
    *(".aws", ".ssh", ".gnupg", ".kube", "kubeconfig"),
)
_SECRET_NAME = re.compile("|".join(map(fnmatch.translate, _SECRET)))
_HARMLESS_NAME = re.compile(r"\.env\.(example|sample|template)|.*\.pub")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


@dataclass(frozen=True)
class Snapshot:
    """What code a run runs: plain facts for its record. Names are as people can read them."""

    version: str  # of the distribution igpt-jobs
    digest: str | None  # of the files; None for an installed wheel, where nothing is shipped
    commit: str | None
    changed: tuple[str, ...] = ()  # tracked files that are not as in the commit, deleted ones too
    untracked: tuple[str, ...] = ()  # shipped although git does not track them
    files: int = 0
    bytes: int = 0

    def described(self) -> str:
        """One line for people."""
        commit = f"commit {self.commit[:7]}" if self.commit else "no commit"
        if self.digest is None:
            origin = f" from {commit}" if self.commit else ""
            return f"{_DISTRIBUTION} {self.version}{origin}, as installed"
        more = [f"{len(self.changed)} changed"] if self.changed else []
        more += [_counted(len(self.untracked), "untracked file")] if self.untracked else []
        size = f"{self.bytes / 1e6:.1f} MB" if self.bytes >= 1e6 else f"{self.bytes / 1e3:.0f} kB"
        whole = f"{commit} + {', '.join(more)}" if more else commit
        return f"{whole}; {_counted(self.files, 'file')}, {size}"


def take(package: Path) -> tuple[Snapshot, Files]:
    """The code of the source tree that the package is imported from, as it is now.

    package: the folder of the package `igpt`. Files are read whole, each as of one moment, so that
    nothing which happens to the tree afterwards matters. From a wheel there are none.

    Raises UserError for what cannot be shipped, and where git does not answer.
    """
    package = package.resolve()
    root = package.parent
    installed = next(root.glob(f"{_DISTRIBUTION.replace('-', '_')}-*.dist-info"), None)
    if installed:
        return _as_installed(metadata.Distribution.at(installed)), ()
    listing = list_files(root, package.name)
    files = _read(root, listing)
    read = {file.path: file for file in files}
    if f"{package.name}/__init__.py" not in read:
        raise UserError(
            f"{package} would not be shipped",
            expected="an __init__.py in it that git does not ignore",
            mend="git check-ignore -v names the rule",
        )
    missing = listing.tracked - read.keys()
    unseen = {
        path
        for path, seen in listing.unwatched.items()
        if path in read and seen != (read[path].mode, _blob(read[path].content, like=seen[1]))
    }
    snapshot = Snapshot(
        version=metadata.version(_DISTRIBUTION),
        digest=digest_of(files),
        commit=listing.commit,
        changed=_readable(listing.changed | missing | unseen),
        untracked=_readable(listing.untracked & read.keys()) if listing.git else (),
        files=len(files),
        bytes=sum(len(file.content) for file in files),
    )
    return snapshot, files


def publish(root: Store, snapshot: Snapshot, files: Files) -> None:
    """Puts the files into the store, unless they are there or there are none to ship."""
    if snapshot.digest is not None and not root.exists(_key(snapshot.digest)):
        root.create(_key(snapshot.digest), pack(files))  # another client may be quicker


def unpack(root: Store, digest: str, folder: Path) -> Path:
    """`folder/<digest>` with the files of the snapshot, whole or not at all; returns it.

    Any number of processes on any number of hosts may ask at once. What is there is used if it
    still holds these files; what somebody has changed is moved aside. folder: one into which only
    those can write who may run code as this user.

    Raises NotFound where the store has no such snapshot, DataCorrupt where it is damaged.
    """
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise DataCorrupt(f"{digest!r} names no code snapshot", expected="a sha256 in hex")
    target = folder / digest
    if holds(target, digest):
        return target
    files = files_in(root.get(_key(digest)), digest, f"{root.uri}/{_key(digest)}")
    beside = folder / f".{digest[:16]}-{secrets.token_hex(8)}"
    try:
        write(files, beside)
        if not holds(beside, digest):
            raise UserError(
                f"{folder} does not keep files as they are written",
                expected="a file system with executable bits and symbolic links",
            )
        _place(beside, target, digest)
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # it has its name where all went well
    return target


def _key(digest: str) -> str:
    return f"code/{digest}.tar.gz"


def _place(beside: Path, target: Path, digest: str) -> None:
    """Gives a whole folder its name, unless another process has put the same one there."""
    for _ in range(_TRIES):
        with explained("written", target):
            try:
                os.rename(beside, target)
                return
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
        if holds(target, digest):
            return
        aside = target.with_name(f"{digest}.changed-{secrets.token_hex(4)}")
        with explained("moved aside", target), suppress(FileNotFoundError):
            target.rename(aside)
    raise UserError(
        f"{target} is changed as often as it is unpacked", mend="Find out what writes there"
    )


def _as_installed(distribution: metadata.Distribution) -> Snapshot:
    """What is known of a wheel: its version, and its commit where pip built it from one."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
    return Snapshot(version=distribution.version, digest=None, commit=commit)


def _read(root: Path, listing: Listing) -> Files:
    """All files of the listing that are there. Raises UserError for those that may not go along."""
    away = "Name it in .gitignore" if listing.git else "Move it elsewhere"
    _refuse(
        root,
        [path for path in listing.untracked if path.endswith("/")],
        "another git repository",
        f"{away}, or make it a submodule",
    )
    secret = [path for path in listing.untracked if _sounds_secret(path)]
    _refuse(root, secret, "what looks like credentials", away)
    folders = {"": True}
    sizes = {
        path: size
        for path in listing.tracked | listing.untracked
        if BYTECODE not in path.split("/")
        and _in_folders(root, path, folders)
        and (size := size_of(root, path)) is not None
    }
    _refuse_large(root, sizes, listing)
    files = in_order(file for path in sizes if (file := read_file(root, path)))
    links = [f.path for f in files if f.mode == LINK and leads_out(f.path, f.content)]
    _refuse(root, links, "a link that leads out of the source tree", f"{away}, or remove it")
    keys = [f.path for f in files if f.path in listing.untracked and _PRIVATE_KEY.match(f.content)]
    _refuse(root, keys, "a private key", away)
    return files


def _in_folders(root: Path, path: str, known: dict[str, bool]) -> bool:
    """Whether no folder on the way to a file is a link, which could lead anywhere.

    known: the answers for folders; it grows.
    """
    above = path.rpartition("/")[0]
    if above not in known:
        is_link = os.path.islink(os.path.join(os.fsencode(root), to_bytes(above)))
        known[above] = not is_link and _in_folders(root, above, known)
    return known[above]


def _sounds_secret(path: str) -> bool:
    return any(
        _SECRET_NAME.match(part) and not _HARMLESS_NAME.fullmatch(part)
        for part in path.lower().split("/")
    )


def _refuse(root: Path, paths: Iterable[str], what: str, mend: str) -> None:
    found = _readable(paths)
    if found:
        raise UserError(f"{_names(found)} in {root} cannot be shipped: {what}", mend=mend)


def _refuse_large(root: Path, sizes: dict[str, int], listing: Listing) -> None:
    """Raises UserError, naming the largest, where files are too large or too many."""
    largest = sorted(sizes, key=lambda path: -sizes[path])
    mend = "Name what is no code in .gitignore" if listing.git else "Move what is no code elsewhere"
    over = [p for p in largest if p in listing.untracked and sizes[p] > UNTRACKED_LIMIT]
    if over:
        raise UserError(
            f"{_names(_with_sizes(over, sizes))} in {root} cannot be shipped",
            expected=f"untracked files of at most {UNTRACKED_LIMIT / 1e6:.0f} MB",
            mend=f"{mend}; what is code can be committed" if listing.git else mend,
        )
    total = sum(sizes.values())
    if total > TOTAL_LIMIT or len(sizes) > FILES_LIMIT:
        raise UserError(
            f"{root} has {len(sizes)} files of {total / 1e6:.1f} MB to ship; the largest are"
            f" {_names(_with_sizes(largest[:_NAMED], sizes))}",
            expected=f"at most {FILES_LIMIT} files and {TOTAL_LIMIT / 1e6:.0f} MB",
            mend=mend,
        )


def _with_sizes(paths: list[str], sizes: dict[str, int]) -> list[str]:
    return [f"{shown(path)} ({sizes[path] / 1e6:.1f} MB)" for path in paths]


def _names(names: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _readable(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(shown(path) for path in sorted(paths))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _blob(content: bytes, *, like: str) -> str:
    """What git calls this content, by the hash that made the name `like`."""
    data = b"blob %d\0%s" % (len(content), content)
    named = hashlib.sha1(data, usedforsecurity=False) if len(like) == 40 else hashlib.sha256(data)
    return named.hexdigest()
