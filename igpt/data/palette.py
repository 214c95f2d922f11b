"""The palette: the colours that are the tokens of Image GPT.

Chen et al., "Generative Pretraining from Pixels" (ICML 2020), section 3.1: k-means over (R, G, B)
pixel values with k = 512, so that a pixel is one token instead of three. Centres live in [-1, 1],
where an 8-bit value v is v / 127.5 - 1; a centre c is shown as rint(127.5 (c + 1)). What the paper
leaves open (which pixels, initialisation, iterations) is fixed here: see `Palette.fit`.
"""

import hashlib
import io
import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from igpt.data.nearest import load_table, nearest_colors
from igpt.data.randomness import uniforms
from igpt.data.stores import open_file
from igpt.errors import UserError

#: Up to this many pixels their distinct colours are compared one by one, without the table.
_FEW_PIXELS = 1 << 16
#: Pixels that stand for all in k-means where there are more distinct colours than this. On 5,000
#: CIFAR-10 images the mean squared distance is 2 % above that of a fit to all their pixels, which
#: takes five times as long.
_FITTED_PIXELS = 1 << 17

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Palette:
    """V colours, `centers` float32 [V, 3] in [-1, 1]; token t means the colour `centers[t]`.

    `note` says what a reader should know of how the palette came about, for the log and the record.
    `made` says what made the palette of a data set, which the data set's claim holds.
    Raises UserError for centres of another shape, outside [-1, 1], or more than 65,536.
    """

    centers: NDArray[np.float32]
    note: str = ""
    made: str = "given"

    def __post_init__(self) -> None:
        centers = np.array(self.centers, dtype=np.float32, order="C")
        if centers.ndim != 2 or centers.shape[1] != 3 or not 1 <= len(centers) <= 65536:
            raise UserError(
                f"a palette cannot have shape {list(centers.shape)}",
                expected="[V, 3], V colours of red, green, blue, at most 65536",
            )
        if not np.all(np.abs(centers) <= 1 + 1e-3):  # not-a-number is refused too
            raise UserError(
                "the palette's values are not all in [-1, 1]",
                expected="v / 127.5 - 1 for a colour value v of 0..255",
            )
        if len(centers) > 1 and centers.min() >= 0:
            log.warning("the palette has no dark colour: is it in [0, 1] rather than [-1, 1]?")
        centers.flags.writeable = False
        object.__setattr__(self, "centers", centers)

    @property
    def colors(self) -> int:
        """V, the size of the vocabulary."""
        return len(self.centers)

    @cached_property
    def digest(self) -> str:
        """sha256, hexadecimal, of the centres as little-endian float32."""
        return hashlib.sha256(self.centers.astype("<f4").tobytes()).hexdigest()

    @classmethod
    def fit(cls, pixels: NDArray[np.uint8], colors: int = 512, seed: int = 0) -> Self:
        """k-means over `pixels` uint8 [N, 3].

        Lloyd's algorithm from one k-means++ start, over the distinct colours weighted by how often
        they occur; of more than 131,072 distinct ones as many pixels, drawn by `seed`, stand for
        all. It runs on one thread, so that the sums are added in the same order every time. Centres
        are ordered by the number of pixels that they stand for.

        A source of fewer distinct colours than asked for gives exactly those, and the last one is
        repeated to make up the number; of equal centres the first is nearest, so the repeated ones
        are never used. `note` says so.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 or not len(pixels):
            raise UserError(
                f"a palette cannot be fitted to {pixels.dtype} {list(pixels.shape)}",
                expected="pixels uint8 [N, 3], at least one",
            )
        if not 1 <= colors <= 65536:
            raise UserError(f"{colors} colours cannot be tokens", expected="1 to 65536 colours")
        distinct, counts = _distinct(pixels)
        if len(distinct) <= colors:
            exact = _unpack(distinct) / 127.5 - 1
            missing = colors - len(distinct)
            note = f"{len(distinct)} distinct colours, all exact"
            if missing:
                note += f"; the last is repeated {missing} times to make {colors}"
                log.warning("palette: %s", note)
            return cls(np.pad(exact, ((0, missing), (0, 0)), mode="edge"), note)
        return cls(_k_means(distinct, counts, colors, seed))

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """From a path or URI: OpenAI's `.npy` in [-1, 1], or Hugging Face's `.json` ("clusters").

        Raises NotFound where there is no such file, UserError where it is not a palette.
        """
        name = str(source)
        return cls.from_bytes(open_file(name), name)

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "palette.npy") -> Self:
        """From the bytes of such a file; the suffix of `name` says which of the two it is."""
        expected = "OpenAI's .npy, or Hugging Face's preprocessor_config.json with 'clusters'"
        try:
            if name.endswith(".npy"):
                centers = np.load(io.BytesIO(content), allow_pickle=False)
            elif name.endswith(".json"):
                centers = np.array(json.loads(content)["clusters"], dtype=np.float64)
            else:
                raise UserError(f"palette {name} has an unknown suffix", expected=expected)
            numbers = np.asarray(centers, dtype=np.float32)
        except UserError:
            raise
        except (ValueError, EOFError, KeyError, TypeError) as error:
            raise UserError(f"{name} is not a palette: {error}", expected=expected) from None
        return cls(numbers)

    def to_bytes(self) -> bytes:
        """The centres as a `.npy` file, float32 [V, 3]."""
        buffer = io.BytesIO()
        np.save(buffer, self.centers.astype("<f4"), allow_pickle=False)
        return buffer.getvalue()

    def save(self, path: str | Path) -> None:
        """Writes `.npy` as OpenAI's, or `.json` as Hugging Face's image processor reads it."""
        target = Path(path)
        if target.suffix == ".npy":
            target.write_bytes(self.to_bytes())
        elif target.suffix == ".json":
            target.write_text(json.dumps(self._processor(), indent=2) + "\n", encoding="utf-8")
        else:
            raise UserError(f"palette {target} has an unknown suffix", expected=".npy or .json")

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Tokens uint16 [N, H*W], rows first, of images uint8 [N, H, W, 3]: the nearest colours.

        Exact, with ties to the lowest index (`igpt.data.nearest`). More than a few images go by way
        of a table of all colours, built once and kept in the cache.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UserError(
                f"images of {images.dtype} {list(images.shape)} cannot be encoded",
                expected="uint8 [N, H, W, 3], red, green, blue",
            )
        packed = _pack(images.reshape(-1, 3))
        if len(packed) > _FEW_PIXELS or "_table" in self.__dict__:
            tokens = self._table[packed]
        else:
            distinct, places = np.unique(packed, return_inverse=True)
            tokens = nearest_colors(_unpack(distinct), self.centers)[places]
        return tokens.reshape(len(images), images.shape[1] * images.shape[2])

    def decode(self, tokens: NDArray[Any], size: int) -> NDArray[np.uint8]:
        """Images uint8 [N, size, size, 3] of integer tokens [N, size*size]."""
        if tokens.ndim != 2 or tokens.shape[1] != size * size or tokens.dtype.kind not in "iu":
            raise UserError(
                f"tokens of {tokens.dtype} {list(tokens.shape)} are no {size}x{size} images",
                expected=f"integers [N, {size * size}]",
            )
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.colors:
            raise UserError(
                f"tokens run from {tokens.min()} to {tokens.max()}",
                expected=f"0 to {self.colors - 1}, the colours of this palette",
            )
        shown = np.rint(127.5 * (self.centers.astype(np.float64) + 1)).clip(0, 255)
        images: NDArray[np.uint8] = shown.astype(np.uint8)[tokens]
        return images.reshape(len(tokens), size, size, 3)

    @cached_property
    def _table(self) -> NDArray[np.uint16]:
        return load_table(self.centers, self.digest)

    def _processor(self) -> dict[str, Any]:
        return {
            "clusters": self.centers.astype(np.float64).tolist(),
            "do_color_quantize": True,
            "do_normalize": True,
            "do_resize": True,
            "image_processor_type": "ImageGPTImageProcessor",
            "resample": 2,
            "size": {"height": 32, "width": 32},
        }


def _pack(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """One number for each colour, in the order of the table."""
    wide = pixels.astype(np.int64)
    return (wide[:, 0] << 16) | (wide[:, 1] << 8) | wide[:, 2]


def _unpack(packed: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.stack([packed >> 16, packed >> 8, packed], axis=1).astype(np.uint8)


def _distinct(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct colours, packed and rising, and how often each occurs."""
    counts = np.zeros(256**3, np.int64)
    for start in range(0, len(pixels), 1 << 22):
        counts += np.bincount(_pack(pixels[start : start + (1 << 22)]), minlength=256**3)
    distinct = np.flatnonzero(counts)
    return distinct, counts[distinct]


def _k_means(
    distinct: NDArray[np.int64], counts: NDArray[np.int64], colors: int, seed: int
) -> NDArray[np.float32]:
    from sklearn.cluster import KMeans  # takes a second to import
    from threadpoolctl import threadpool_limits

    if len(distinct) > _FITTED_PIXELS:
        drawn = uniforms(_FITTED_PIXELS, "palette", seed) * counts.sum()
        places = np.searchsorted(np.cumsum(counts), drawn, side="right")
        kept, counts = np.unique(places, return_counts=True)
        distinct = distinct[kept]
    values = (_unpack(distinct) / 127.5 - 1).astype(np.float32)
    with threadpool_limits(1):
        found = KMeans(colors, n_init=1, random_state=seed, max_iter=100).fit(
            values, sample_weight=counts
        )
    weight = np.bincount(found.labels_, weights=counts, minlength=colors)
    order = np.argsort(-weight, kind="stable")
    centers: NDArray[np.float32] = found.cluster_centers_[order].astype(np.float32)
    return centers
