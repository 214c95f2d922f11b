"""Small images as crisp PNG: whole enlarged pixels, inlined as `data:` addresses."""

import base64
import io

import numpy as np
from numpy.typing import NDArray

from igpt.report.content import Images

_SIDE = 128  # images are enlarged by the whole factor that brings them to at least this size
_LIGHT, _DARK = 214, 186  # the greys of what is hidden


def enlarge(image: Images) -> Images:
    """The image uint8 [H, W, 3] with each pixel repeated, at least 128 wide and high."""
    factor = _factor(image)
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def hatch(image: Images, hidden: NDArray[np.bool_]) -> Images:
    """`enlarge`, with grey stripes over the pixels where `hidden` bool [H, W] is True."""
    large = enlarge(image)
    factor = _factor(image)
    covered = hidden.repeat(factor, axis=0).repeat(factor, axis=1)
    rows, columns = np.indices(covered.shape)
    stripes = np.where((rows + columns) // 4 % 2 == 0, _LIGHT, _DARK).astype(np.uint8)
    return np.where(covered[..., None], stripes[..., None], large)


def png_address(image: Images) -> str:
    """The image uint8 [H, W, 3] as it is, as a `data:` address."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _factor(image: Images) -> int:
    side = max(1, min(int(length) for length in image.shape[:2]))
    return max(1, -(-_SIDE // side))
