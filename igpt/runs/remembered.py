"""A record seen through a memory: who looks again and again asks the store only for what is new.

What is written once in a record (its spec, events, claims, clusters, jobs) is fetched once. All
else is fetched once between two calls of `forget`, so a look costs few requests and everything in
it is of one moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from igpt.storage import ObjectInfo, Store

_WRITTEN_ONCE = ("spec.yaml", "/claim.json", "/cluster.yaml", "/job.json")


@dataclass(frozen=True)
class RememberedRecord:
    """A `Store` over the record of a run, for reading. What is written goes through and is new.

    Threads may share it; two of them may then ask for the same thing.
    """

    record: Store
    _contents: dict[str, bytes] = field(default_factory=dict)
    _listings: dict[str, list[str]] = field(default_factory=dict)
    _existing: dict[str, bool] = field(default_factory=dict)

    def forget(self) -> None:
        """Begins a new look: what may have changed is asked for again."""
        for key in [key for key in self._contents if not _is_written_once(key)]:
            del self._contents[key]
        for key in [key for key, there in self._existing.items() if not there]:
            del self._existing[key]
        self._listings.clear()

    @property
    def uri(self) -> str:
        return self.record.uri

    def get(self, key: str) -> bytes:
        if key not in self._contents:
            self._contents[key] = self.record.get(key)
        return self._contents[key]

    def objects(self, prefix: str = "") -> list[ObjectInfo]:
        return self.record.objects(prefix)

    def children(self, prefix: str = "") -> list[str]:
        if prefix not in self._listings:
            self._listings[prefix] = self.record.children(prefix)
        return self._listings[prefix]

    def exists(self, key: str) -> bool:
        if key not in self._existing:
            self._existing[key] = key in self._contents or self.record.exists(key)
        return self._existing[key]

    def put(self, key: str, data: bytes) -> None:
        self.record.put(key, data)
        self._changed(key)

    def create(self, key: str, data: bytes) -> bool:
        created = self.record.create(key, data)
        self._changed(key)
        return created

    def upload(self, key: str, path: Path) -> None:
        self.record.upload(key, path)
        self._changed(key)

    def download(self, key: str, path: Path) -> None:
        self.record.download(key, path)

    def delete(self, keys: Sequence[str]) -> None:
        self.record.delete(keys)
        for key in keys:
            self._changed(key)

    def sub(self, prefix: str) -> Store:
        return self.record.sub(prefix)

    def local_path(self, key: str) -> Path | None:
        return self.record.local_path(key)

    def _changed(self, key: str) -> None:
        self._contents.pop(key, None)
        self._existing.pop(key, None)
        self._listings.clear()


def _is_written_once(key: str) -> bool:
    return key.startswith("events/") or key.endswith(_WRITTEN_ONCE)
