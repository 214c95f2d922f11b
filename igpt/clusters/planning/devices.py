"""What the name of a device tells of it: whether it is a GPU, and how much memory it has.

Peaks are in `igpt.training.throughput`. A device that is not known stays unknown.
"""

import re
from typing import Literal

from igpt.clusters.base import DeviceConfig

#: A card's GB are 2^30 bytes.
GIB = 2**30

#: Part of a device's name -> memory in GB, the smallest that is sold, from the vendor's data
#: sheets. A size in the name itself, as in A100-SXM4-80GB, goes before; but GH200's is the host's.
_MEMORY: tuple[tuple[str, int], ...] = (
    ("GH200", 96),
    ("B200", 180),
    ("H200", 141),
    ("H100 NVL", 94),
    ("H100", 80),
    ("H20", 96),
    ("A100", 40),
    ("A40", 48),
    ("A30", 24),
    ("A10G", 24),
    ("A10", 24),
    ("L40S", 48),
    ("L40", 48),
    ("L4", 24),
    ("V100", 16),
    ("T4", 16),
    ("RTX 4090", 24),
    ("RTX 3090", 24),
)


def device_memory(device: DeviceConfig) -> float | None:
    """Bytes of one worker's device: as the cluster file says, else by its name, else None."""
    if device.memory_gb is not None:
        return device.memory_gb * GIB
    name = device.name or ""
    known = {part: size for part, size in _MEMORY if _is_part(part, name)}
    written = re.findall(r"(\d+)\s*GB", name, re.IGNORECASE)
    if written and "GH200" not in known:
        return float(written[-1]) * GIB  # the last: a slice of a card is named after the card
    return next(iter(known.values())) * GIB if known else None


def is_gpu(device: DeviceConfig, wanted: Literal["auto", "cpu", "cuda"]) -> bool | None:
    """Whether a job that wants this device computes on a GPU; None where nothing says so."""
    if wanted != "auto":
        return wanted == "cuda"
    if device.name is not None:
        return not _is_part("cpu", device.name)
    return None if device.memory_gb is None else True


def _is_part(part: str, name: str) -> bool:
    """Whether it stands in the name as a word: A30 is not in RTX A3000."""
    return re.search(rf"(?<![a-z0-9]){part}(?![0-9])", name, re.IGNORECASE) is not None
