"""Small images, palettes and data sets for the tests of this room."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from igpt.data import ArraySource, Palette
from igpt.storage import ObjectInfo, Store


def noise(count: int, size: int = 8, seed: int = 0) -> NDArray[np.uint8]:
    """Images of random pixels, no two alike: uint8 [count, size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def a_palette(colors: int = 16) -> Palette:
    return Palette(np.random.default_rng(7).uniform(-1, 1, (colors, 3)).astype(np.float32))


def a_source(count: int = 100, classes: int = 3, size: int = 8) -> ArraySource:
    """`count` training images of cycling labels and a quarter as many test images."""
    total = count + count // 4
    splits = ["train"] * count + ["test"] * (total - count)
    return ArraySource(noise(total, size), np.arange(total) % classes, splits)


def encoded(image: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_files(root: Path, names: Sequence[str], size: int = 8) -> None:
    """An image folder of PNGs, each of another colour by its place in `names`."""
    for place, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(np.full((size, size, 3), place, np.uint8)))


class Remote:
    """A store that behaves as if it were on another machine, and counts what is fetched."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.fetched: list[str] = []

    @property
    def uri(self) -> str:
        return self.store.uri

    def get(self, key: str) -> bytes:
        return self.store.get(key)

    def put(self, key: str, data: bytes) -> None:
        self.store.put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        return self.store.create(key, data)

    def upload(self, key: str, path: Path) -> None:
        self.store.upload(key, path)

    def download(self, key: str, path: Path) -> None:
        self.fetched.append(key)
        self.store.download(key, path)

    def objects(self, prefix: str = "") -> list[ObjectInfo]:
        return self.store.objects(prefix)

    def children(self, prefix: str = "") -> list[str]:
        return self.store.children(prefix)

    def exists(self, key: str) -> bool:
        return self.store.exists(key)

    def delete(self, keys: Sequence[str]) -> None:
        self.store.delete(keys)

    def sub(self, prefix: str) -> Store:
        return self.store.sub(prefix)

    def local_path(self, key: str) -> Path | None:
        return None
