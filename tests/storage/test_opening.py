"""Which store is opened for which URI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from igpt.errors import UserError
from igpt.storage import S3Settings, open_store


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("stores/mine").uri == str(tmp_path / "stores" / "mine")
    assert open_store("~/stores/").uri == str(Path.home() / "stores")
    assert open_store("/data//store/").uri == "/data/store"
    assert open_store("file:///data/a%20b").uri == "/data/a b"
    assert open_store("file://localhost/data").uri == "/data"
    assert list(tmp_path.glob("stores")) == []


def test_buckets_and_prefixes_are_taken_apart() -> None:
    settings = S3Settings(endpoint="http://127.0.0.1:9000", region="eu-central-1")
    store = open_store("s3://bucket/a/b/", settings)
    assert (store.uri, store.bucket, store.prefix) == ("s3://bucket/a/b", "bucket", "a/b")
    assert store.settings == settings
    assert open_store("s3://bucket").uri == open_store("s3://bucket/").uri == "s3://bucket"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "has no name"),
        ("s4://bucket", "Did you mean s3://bucket"),
        ("S3://bucket/x", "Did you mean s3://bucket/x"),
        ("files:///data", "Did you mean file:///data"),
        ("https://bucket.s3.amazonaws.com/x", "unknown scheme"),
        ("file://data/store", "Did you mean file:///data/store"),
        ("s3://", "'' is not a bucket"),
        ("s3:///prefix", "'' is not a bucket"),
        ("s3://My_Bucket", "'My_Bucket' is not a bucket"),
        ("s3://bucket/a/../b", "is not a key"),
        ("s3://bucket//a", "is not a key"),
        ("~nobody-of-this-name/store", "home directory"),
    ],
)
def test_what_is_no_store_is_explained(uri: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        open_store(uri)
    assert message in str(caught.value)
    assert "s3://bucket/prefix" in str(caught.value)


def test_a_directory_is_opened_without_boto3() -> None:
    program = (
        "import sys; from igpt.storage import open_store; open_store('/tmp/x').children();"
        "sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
