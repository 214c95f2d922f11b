"""Where images come from: the interface of a source, and the source that is in memory.

A source is an ordered list of images. The order, the names and the digest depend on the data
alone, not on the machine, the path or the file system.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from igpt.config import nearest
from igpt.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Record:
    """What a source knows of one image before it is decoded."""

    name: str  # unique within the source
    label: int  # a place in `Source.classes`; -1 = none
    split: str  # one of SPLITS


class Source(Protocol):
    """An ordered list of images, of which each can be read alone and at any time."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty where there are no labels."""

    @property
    def digest(self) -> str:
        """sha256, hexadecimal, of what tells this source from another."""

    def __len__(self) -> int: ...

    def record(self, number: int) -> Record:
        """The name, label and split of image `number`, without decoding it."""

    def image(self, number: int) -> NDArray[np.uint8]:
        """Image `number`, uint8 [H, W, 3]. Raises BadImage where it cannot be read."""

    def describe(self) -> dict[str, Any]:
        """What the index records of the source: plain JSON, the same wherever the source lies."""


class ArraySource:
    """Images in memory: `images` uint8 [N, H, W, 3], all of one size.

    `labels` int [N] (-1 = none), `splits` one of SPLITS for each image (all train by default),
    `classes` the names of labels 0, 1, ... (their numbers by default), `names` unique ones (the
    places by default). Raises UserError for what does not fit together.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: ArrayLike | None = None,
        splits: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
            raise UserError(
                f"images of {images.dtype} {list(images.shape)} are no source",
                expected="uint8 [N, H, W, 3], at least one image",
            )
        count = len(images)
        self._images = images
        self._labels = np.asarray([-1] * count if labels is None else labels)
        self._splits = ["train"] * count if splits is None else list(splits)
        self._names = [f"{i:08d}" for i in range(count)] if names is None else list(names)
        if self._labels.dtype.kind not in "iu":
            raise UserError(f"labels are {self._labels.dtype}", expected="whole numbers, -1 = none")
        for what, given in (
            ("labels", self._labels),
            ("splits", self._splits),
            ("names", self._names),
        ):
            if len(given) != count:
                raise UserError(f"there are {len(given)} {what} for {count} images")
        for split in sorted(set(self._splits) - set(SPLITS)):
            raise UserError(f"{split!r} is not a split{nearest(split, SPLITS)}")
        if len(set(self._names)) != count:
            raise UserError("two images have the same name", expected="unique names")
        highest = int(self._labels.max())
        self.classes = tuple(map(str, range(highest + 1)) if classes is None else classes)
        if not -1 <= int(self._labels.min()) <= highest < len(self.classes):
            raise UserError(
                f"labels run from {self._labels.min()} to {highest}",
                expected=f"-1 for none, or a place in the {len(self.classes)} classes",
            )
        digest = hashlib.sha256(repr((images.shape, self.classes, self._splits)).encode())
        digest.update(repr((self._names, self._labels.tolist())).encode())
        digest.update(np.ascontiguousarray(images).data)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def record(self, number: int) -> Record:
        return Record(self._names[number], int(self._labels[number]), self._splits[number])

    def image(self, number: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self._images[number]
        return image

    def describe(self) -> dict[str, Any]:
        return {"kind": "array", "images": len(self)}
