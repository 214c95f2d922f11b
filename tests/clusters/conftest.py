"""A store with the digits in it, whose runs are ended with the test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from igpt.storage import Store, open_store
from tests.support import study


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds nothing but the digits."""
    folder = tmp_path_factory.mktemp("digits")
    study.write_digits(open_store(str(folder)))
    return folder


@pytest.fixture
def root(digits: Path, tmp_path: Path) -> Iterator[Store]:
    """A store of the test's own with the digits."""
    folder = tmp_path / "store"
    shutil.copytree(digits, folder)
    store = open_store(str(folder))
    with study.cleaned(store):
        yield store
