"""Real pictures for the benchmarks: crops of scikit-learn's two photographs."""

import numpy as np
from numpy.typing import NDArray


def crops(step: int, size: int = 32) -> NDArray[np.uint8]:
    """Every crop of `size` that begins at a multiple of `step`: uint8 [N, size, size, 3].

    A step of 32 covers each pixel once: 520 images. No two crops are the same place.
    """
    from sklearn.datasets import load_sample_images

    images = [
        photo[top : top + size, left : left + size]
        for photo in load_sample_images().images
        for top in range(0, photo.shape[0] - size + 1, step)
        for left in range(0, photo.shape[1] - size + 1, step)
    ]
    return np.stack(images)
