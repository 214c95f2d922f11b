"""A store in an S3 bucket, of AWS or of any server that speaks its protocol.

botocore checks a CRC of each request on the way. The sha256 of the whole object travels in its
metadata and is checked again on reading, whatever route the bytes took; an object that something
else wrote has none, and is checked by its size alone.
"""

import hashlib
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from boto3.s3.transfer import TransferConfig
from botocore import exceptions
from s3transfer.exceptions import (
    S3DownloadFailedError,
    S3ValidationError,
)

from igpt.errors import DataCorrupt, NotFound
from igpt.storage.base import ObjectInfo, Store, check_key, check_prefix
from igpt.storage.files import explained as explained_path
from igpt.storage.files import write_file
from igpt.storage.s3_client import error_code, explained, s3_client
from igpt.storage.settings import S3Settings

_TRANSFER = TransferConfig(
    multipart_threshold=16 << 20,
    multipart_chunksize=16 << 20,
    max_concurrency=8,
    num_download_attempts=2,  # each of them already tries four times to get an answer
    preferred_transfer_client="classic",  # the other one ignores our retries and time limits
)
_DIGEST = "igpt-sha256"
_WRITER = "igpt-writer"
_DELETED_AT_ONCE = 1000  # S3's limit
_PAUSES = (0.2, 1.0, 3.0)  # seconds between tries of what botocore does not try again by itself

#: A body that broke off after the answer had begun.
_BROKEN = (
    exceptions.FlexibleChecksumError,
    exceptions.IncompleteReadError,
    exceptions.ReadTimeoutError,
    exceptions.ResponseStreamingError,
)


@dataclass(frozen=True)
class S3Store:
    """The store below `prefix`, a key or empty, of `bucket`. It may be pickled and forked."""

    bucket: str
    prefix: str = ""
    settings: S3Settings = field(default_factory=S3Settings)

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".removesuffix("/")

    def get(self, key: str) -> bytes:
        name = self._name(key)
        with self._explained(key):
            for last in _tries():
                answer = self._call("get_object", Key=name)
                try:
                    data: bytes = answer["Body"].read()
                    self._check(key, len(data), hashlib.sha256(data).hexdigest(), answer)
                    return data
                except (*_BROKEN, DataCorrupt):
                    if last:
                        raise
        raise AssertionError("the last try returns or raises")

    def put(self, key: str, data: bytes) -> None:
        with explained(self.bucket, self.settings):
            self._put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        # botocore sends a request again when its answer is lost. The second one then finds the
        # object of the first, and only the token tells that it is ours.
        writer = secrets.token_hex(16)
        with explained(self.bucket, self.settings):
            for last in _tries():
                try:
                    self._put(key, data, writer=writer, IfNoneMatch="*")
                    return True
                except exceptions.ClientError as error:
                    if error_code(error) in ("PreconditionFailed", "412"):
                        head = self._head(key)
                        return head is not None and _metadata(head).get(_WRITER) == writer
                    if error_code(error) != "ConditionalRequestConflict" or last:
                        raise
        raise AssertionError("the last try returns or raises")

    def upload(self, key: str, path: Path) -> None:
        name = self._name(key)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with explained(self.bucket, self.settings):
                s3_client(self.settings).upload_fileobj(
                    file,
                    self.bucket,
                    name,
                    ExtraArgs={"Metadata": {_DIGEST: digest}},
                    Config=_TRANSFER,
                )

    def download(self, key: str, path: Path) -> None:
        self._name(key)

        def fill(file: BinaryIO) -> None:
            with self._explained(key):
                for last in _tries():
                    try:
                        self._download(key, file)
                        return
                    except DataCorrupt:
                        if last:
                            raise

        with explained_path("written", path):
            write_file(path, fill)

    def objects(self, prefix: str = "") -> list[ObjectInfo]:
        found = [
            ObjectInfo(
                item["Key"].removeprefix(self._above),
                item["Size"],
                item["LastModified"].timestamp(),
            )
            for page in self._pages(self._above + check_prefix(prefix))
            for item in page.get("Contents", [])
            if not item["Key"].endswith("/")  # a folder that some console has made visible
        ]
        return sorted(found, key=lambda item: item.key)

    def children(self, prefix: str = "") -> list[str]:
        # SeaweedFS keeps folders: it names one for minutes after its last object was deleted.
        folder = check_key(prefix.removesuffix("/")) + "/" if prefix else ""
        above = self._above + folder
        names = set()
        for page in self._pages(above, Delimiter="/"):
            names |= {item["Key"] for item in page.get("Contents", [])}
            names |= {item["Prefix"] for item in page.get("CommonPrefixes", [])}
        return sorted({name.removeprefix(above).removesuffix("/") for name in names} - {""})

    def exists(self, key: str) -> bool:
        with explained(self.bucket, self.settings):
            return self._head(key) is not None

    def delete(self, keys: Sequence[str]) -> None:
        names = [self._name(key) for key in keys]
        with explained(self.bucket, self.settings):
            for start in range(0, len(names), _DELETED_AT_ONCE):
                self._delete(names[start : start + _DELETED_AT_ONCE])

    def sub(self, prefix: str) -> Store:
        return replace(self, prefix=self._name(prefix.removesuffix("/")))

    def local_path(self, key: str) -> Path | None:
        self._name(key)
        return None

    @property
    def _above(self) -> str:
        """What stands before each key in the bucket."""
        return f"{self.prefix}/" if self.prefix else ""

    def _name(self, key: str) -> str:
        """The key as the bucket knows it. Raises ValueError where it is none."""
        return self._above + check_key(key)

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """`explained`, where a missing object is the caller's concern and not the server's."""
        with explained(self.bucket, self.settings):
            try:
                yield
            except exceptions.ClientError as error:
                # A bare 404 is that of the transfer's own HEAD: it went after we had seen it.
                if error_code(error) in ("404", "NoSuchKey"):
                    raise self._not_found(key) from None
                raise

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        method = getattr(s3_client(self.settings), operation)
        answer: dict[str, Any] = method(Bucket=self.bucket, **arguments)
        return answer

    def _put(self, key: str, data: bytes, *, writer: str = "", **condition: str) -> None:
        metadata = {_DIGEST: hashlib.sha256(data).hexdigest()}
        if writer:
            metadata[_WRITER] = writer
        self._call("put_object", Key=self._name(key), Body=data, Metadata=metadata, **condition)

    def _head(self, key: str) -> dict[str, Any] | None:
        """What the server says of the object, or None where there is none."""
        try:
            return self._call("head_object", Key=self._name(key))
        except exceptions.ClientError as error:
            if error_code(error) not in ("400", "403", "404", "NoSuchKey"):
                raise
            # A HEAD answer has no body that would tell a missing object from a missing bucket, or
            # keys that have expired from another region. This request has one.
            self._call("list_objects_v2", MaxKeys=1)
            if error_code(error) in ("400", "403"):
                raise
        return None

    def _download(self, key: str, file: BinaryIO) -> None:
        head = self._head(key)
        if head is None:
            raise self._not_found(key)
        file.seek(0)
        file.truncate()
        try:
            s3_client(self.settings).download_fileobj(
                self.bucket, self._name(key), file, Config=_TRANSFER
            )
        except (S3DownloadFailedError, S3ValidationError) as error:
            raise DataCorrupt(
                f"{self.uri}/{key} changed while it was read", mend="Read it again"
            ) from error
        size = file.seek(0, 2)
        file.seek(0)
        self._check(key, size, hashlib.file_digest(file, "sha256").hexdigest(), head)  # type: ignore[arg-type]

    def _check(self, key: str, size: int, digest: str, answer: dict[str, Any]) -> None:
        expected = _metadata(answer).get(_DIGEST, digest)
        if size != answer["ContentLength"] or digest != expected:
            raise DataCorrupt(
                f"{self.uri}/{key} arrived as {size} bytes with sha256 {digest}",
                expected=f"{answer['ContentLength']} bytes with sha256 {expected}",
                mend="The object was damaged or written over while it was read; write it again",
            )

    def _pages(self, prefix: str, **arguments: str) -> Iterator[dict[str, Any]]:
        with explained(self.bucket, self.settings):
            pages = s3_client(self.settings).get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self.bucket, Prefix=prefix, **arguments)

    def _delete(self, names: list[str]) -> None:
        for last in _tries():
            listed = {"Objects": [{"Key": name} for name in names], "Quiet": True}
            errors = self._call("delete_objects", Delete=listed).get("Errors", [])
            errors = [error for error in errors if error.get("Code") != "NoSuchKey"]
            if not errors:
                return
            if last or any(error.get("Code") == "AccessDenied" for error in errors):
                raise exceptions.ClientError({"Error": errors[0]}, "DeleteObjects")
            names = [error["Key"] for error in errors]

    def _not_found(self, key: str) -> NotFound:
        return NotFound(f"there is no {self.uri}/{key}")


def _tries() -> Iterator[bool]:
    """Yields once per try, with growing pauses between them: whether it is the last."""
    for pause in _PAUSES:
        yield False
        time.sleep(pause)
    yield True


def _metadata(answer: dict[str, Any]) -> dict[str, str]:
    """The object's metadata; some servers write its names with capitals."""
    return {name.lower(): value for name, value in answer.get("Metadata", {}).items()}
