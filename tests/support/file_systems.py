"""A folder on a file system of its own, which can go away and come back."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: An empty file of which every read fails as from a server that is away: nothing is at address 0.
NO_ANSWER = Path("/proc/self/mem")

_PLACES = ("/dev/shm", "/run/shm", "/var/tmp", "/tmp")


class Removable:
    """`folder` leads to the other file system while that is there; by a link, as anybody may."""

    def __init__(self, folder: Path, elsewhere: Path) -> None:
        self.folder = folder
        self._elsewhere = elsewhere
        folder.symlink_to(elsewhere)

    def leave(self, *, empty: bool) -> None:
        """Goes away; what is beneath is an empty folder, as a mount point is, or nothing."""
        self.folder.unlink()
        if empty:
            self.folder.mkdir()

    def come_back(self) -> None:
        """As it was. Fails where something was written beneath meanwhile."""
        beneath = list(self.folder.iterdir()) if self.folder.is_dir() else []
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.symlink_to(self._elsewhere)
        assert not beneath


@contextmanager
def removable(folder: Path) -> Iterator[Removable]:
    """A file system at `folder`, which is not there yet; skips the test where there is no other."""
    own = os.stat(folder.parent).st_dev
    places = [Path(place) for place in _PLACES if Path(place).is_dir()]
    other = next((place for place in places if os.stat(place).st_dev != own), None)
    if other is None:
        pytest.skip(f"none of {', '.join(_PLACES)} is on another file system than {folder.parent}")
    elsewhere = Path(tempfile.mkdtemp(prefix="igpt-test-", dir=other))
    try:
        yield Removable(folder, elsewhere)
    finally:
        shutil.rmtree(elsewhere)
