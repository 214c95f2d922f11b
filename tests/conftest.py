"""What every test may use: a clean environment, a store, a bucket on a real server."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from igpt.storage import Store, open_store
from tests.support import study
from tests.support.s3_server import S3Server

# A shell's background jobs ignore interrupts, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that nobody waits for it in the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def hermetic(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting of the machine or its user reaches a test; they share only unpacked code."""
    for name in os.environ:
        if name.startswith(("AWS_", "IGPT_", "RAY_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    (home / ".cache" / "igpt-jobs").mkdir(parents=True)
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "code"
    shared.mkdir(exist_ok=True)
    (home / ".cache" / "igpt-jobs" / "code").symlink_to(shared)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a directory."""
    return open_store(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server, one per test process, started by the first test that asks for it."""
    server = S3Server(tmp_path_factory.mktemp("s3") / "server")
    yield server
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty bucket; boto3 finds the server through the environment."""
    from igpt.storage.s3_client import forget_clients

    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    forget_clients()
    bucket = s3_server.make_bucket()
    yield f"s3://{bucket}"
    forget_clients()
    s3_server.remove_bucket(bucket)


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
