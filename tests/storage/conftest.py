"""A store of each kind, for the tests that hold for all of them."""

from collections.abc import Iterator

import pytest

from igpt.storage import Store, open_store


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def any_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store, in a directory and then in a bucket below a prefix."""
    if request.param == "directory":
        yield request.getfixturevalue("store")
    else:
        yield open_store(f"{request.getfixturevalue('s3_bucket')}/some/prefix")
