"""Opens a source by its address, and proves before a job starts that it can be read.

source = open_source("folder:/data/cats")          # an image folder
source = open_source("tar:/data/cifar10.tar.xz")   # a tar of one, or zip:/data/cats.zip
"""

import time
from collections.abc import Callable

from igpt.config import nearest
from igpt.data.folders import open_folder, open_tar, open_zip
from igpt.data.sources import Source
from igpt.errors import UserError


def open_source(uri: str) -> Source:
    """The source at `folder:PATH`, `tar:PATH` or `zip:PATH`; listed now, decoded later.

    Raises UserError for another scheme, for a path where there is nothing to read, or for a layout
    that `igpt.data.layout` does not know.
    """
    kinds: dict[str, Callable[[str], Source]] = {
        "folder": open_folder,
        "tar": open_tar,
        "zip": open_zip,
    }
    scheme, colon, path = uri.partition(":")
    if not colon or scheme not in kinds:
        hint = nearest(scheme, kinds) if colon else f'; did you mean "folder:{uri}"?'
        raise UserError(
            f"source {uri!r} has {'an unknown' if colon else 'no'} scheme{hint}",
            expected="folder:PATH, tar:PATH or zip:PATH",
        )
    return kinds[scheme](path)


def check_source(
    source: Source,
    limit: int = 1000,
    seconds: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Decodes images spread evenly over the source and returns how many.

    All of them where there are at most `limit`, and none more once `seconds` have passed. Raises
    BadImage, a UserError, for the first that cannot be read.
    """
    end = clock() + seconds
    step = max(1, len(source) / limit)
    checked = 0
    while checked < min(len(source), limit):
        source.image(int(checked * step))
        checked += 1
        if clock() >= end:
            break
    return checked
