"""One interface over a directory and an S3 bucket: whole objects, exclusive creates, listings.

    store = open_store("s3://bucket/prefix")      # or a path
    store.create("runs/a/spec.yaml", text)        # False where it exists already

Keys are relative and separated by slashes. Objects appear whole or not at all, and are checksummed
on the way. The first failure that a user can mend is reported as `Unreachable` (no server, no such
bucket, refused credentials: exit code 3) or `UserError` (a directory that cannot be written: 2).
"""

from igpt.storage.base import ObjectInfo, Store, check_key
from igpt.storage.opening import check_writable, open_store
from igpt.storage.settings import S3Settings, resolve_store

__all__ = [
    "ObjectInfo",
    "S3Settings",
    "Store",
    "check_key",
    "check_writable",
    "open_store",
    "resolve_store",
]
