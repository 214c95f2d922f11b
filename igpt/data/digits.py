"""The pictures of the quickstart: real handwritten digits in the colours of two real photographs.

Real: the 1,797 digits of scikit-learn's `load_digits` (UCI, 8x8 pixels, 17 grey levels) with their
labels, and six colours, the k-means centres of its two photographs, china.jpg and flower.jpg.
Composed: which colours a picture has. For each of eight pictures of a digit, one of the three dark
colours and one of the three light ones are drawn, and which of the two is the paper; a grey level
mixes ink into paper.

As dark and light change places, no linear map of raw pixels tells the digits apart: here a network
has to learn what a digit is whatever its colours. That is the point of the set, and also why raw
pixels do so badly on it; on the grey digits they do well.

The split is by digit, in scikit-learn's order, so no handwriting is in two splits: the first 1,294
train, the next 144 validate, the last 359 test.
"""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLORS = 6  # of the photographs; the darker half goes with the lighter half
VARIANTS = 8  # pictures of each digit
VALIDATION, TEST = 144, 359  # digits


def write_digits(folder: Path, seed: int = 0) -> int:
    """Writes the pictures as an image folder, `<split>/<class>/digit-<n>-<variant>.png`.

    A folder that is there already is left as it is. Returns how many pictures it holds.
    """
    if not folder.exists():
        images, labels, splits = digits(seed)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for split in ("train", "validation", "test"):
            for label in range(10):
                (partial / split / str(label)).mkdir(parents=True)
        for number, (image, label, split) in enumerate(zip(images, labels, splits, strict=True)):
            digit, variant = divmod(number, VARIANTS)
            Image.fromarray(image).save(
                partial / split / str(label) / f"digit-{digit:04}-{variant}.png"
            )
        partial.rename(folder)
    return sum(1 for _ in folder.rglob("*.png"))


def digits(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Images uint8 [14376, 8, 8, 3], labels int64 [14376] and the split of each image."""
    from sklearn.datasets import load_digits

    data = load_digits()
    count = len(data.images)
    train = count - VALIDATION - TEST
    splits = np.repeat(["train", "validation", "test"], [train, VALIDATION, TEST])

    generator = np.random.default_rng(seed)
    colors, half, shape = photo_colors(), COLORS // 2, (count, VARIANTS)
    dark = colors[generator.integers(half, size=shape)]  # [digits, variants, 3]
    light = colors[half + generator.integers(half, size=shape)]
    negative = generator.integers(2, size=(*shape, 1)) == 1  # light ink on dark paper
    paper, ink = np.where(negative, dark, light), np.where(negative, light, dark)

    amount = (data.images / 16)[:, None, :, :, None]  # of ink, [digits, 1, 8, 8, 1]
    paper, ink = paper[:, :, None, None], ink[:, :, None, None]
    images = np.round(paper + amount * (ink - paper)).astype(np.uint8).reshape(-1, 8, 8, 3)
    labels = data.target.repeat(VARIANTS).astype(np.int64)
    return images, labels, splits.repeat(VARIANTS).tolist()


def photo_colors() -> NDArray[np.float64]:
    """Float [6, 3]: the k-means colours of scikit-learn's two photographs, dark to light."""
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    pixels = np.concatenate([photo[::8, ::8].reshape(-1, 3) for photo in photos])
    means = KMeans(COLORS, n_init=4, random_state=0).fit(pixels.astype(np.float64))
    brightness = means.cluster_centers_ @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    ordered: NDArray[np.float64] = np.round(means.cluster_centers_[np.argsort(brightness)])
    return ordered
