"""From the bytes of an image file to red, green and blue, or a clear refusal.

PNG, JPEG, WebP and BMP are read, by Pillow; no other of its formats is tried. The picture is
turned as its EXIF orientation says. Grey, palette and CMYK images become RGB, 16-bit grey keeps
its upper 8 bits, and what is transparent shows white behind it.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from igpt.errors import UserError

#: The names that count as images, in small letters.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
#: Pixels above which a picture is taken for a decompression bomb: Pillow's own limit.
_MOST_PIXELS = 89_478_485
#: The tag of EXIF that says how the camera was held, and what turns the picture upright.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(UserError):
    """A file that is not an image that can be read. Counted against the writer's budget."""


def decode_image(content: bytes, name: str) -> NDArray[np.uint8]:
    """The picture, uint8 [H, W, 3]. Raises BadImage, which names it `name`."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                raise BadImage(
                    f"image {name} has {width}x{height} pixels",
                    expected=f"at most {_MOST_PIXELS:,}",
                )
            return np.array(_to_rgb(_upright(image)))
    except UnidentifiedImageError:
        raise BadImage(f"{name} is not an image", expected="PNG, JPEG, WebP or BMP") from None
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # what a decoder makes of damaged bytes has no common class
        reason = str(error) or type(error).__name__
        raise BadImage(f"image {name} cannot be read: {reason}") from None


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says; as it is where that is damaged or says nothing.

    Pillow's `exif_transpose` also writes the EXIF anew, and fails where it is odd.
    """
    image.load()  # in a PNG the EXIF may come after the pixels
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # damaged: any of many
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        upper = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(upper.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    return image.convert("RGB")
