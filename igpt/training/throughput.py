"""How fast training is: tokens and images a second, share of the device's peak, wait for data.

Model FLOPs utilisation (MFU) is the count of `ModelConfig.training_flops_per_token` over the dense
peak of the device. A device that the table does not know has none: a guessed peak would be worse.
"""

import re
from dataclasses import dataclass
from typing import Literal

#: Words of the device's name -> dense peak in FLOP/s of bfloat16, and of float32 without TF32.
#: From the vendor's data sheets; the first line that fits counts. None = it has no such units.
PEAKS: tuple[tuple[str, float | None, float], ...] = (
    ("B200", 2250e12, 75e12),
    ("GH200", 989e12, 67e12),
    ("H200 NVL", 835e12, 60e12),
    ("H200", 989e12, 67e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100", 989e12, 67e12),
    ("H20", 148e12, 44e12),
    ("A100", 312e12, 19.5e12),
    ("A40", 149.7e12, 37.4e12),
    ("A30", 165e12, 10.3e12),
    ("A10G", 70e12, 31.5e12),
    ("A10", 125e12, 31.2e12),
    ("L40S", 362e12, 91.6e12),
    ("L4", 121e12, 30.3e12),
    ("V100", None, 15.7e12),
    ("T4", None, 8.1e12),
    ("RTX 4090", 165.2e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
)


#: Words that make another device of one in the table: a smaller chip, or a part of it.
_OTHERS = {"d", "laptop", "max-q", "mig", "super", "ti"}


def peak_flops(device_name: str, precision: Literal["float32", "bfloat16"]) -> float | None:
    """The device's dense peak in FLOP/s, None where it is not known.

    device_name: as the driver reports it, or as a cluster file has it: `NVIDIA A100-SXM4-80GB`,
        `A100`.
    """
    name = device_name.lower()
    if _OTHERS & set(name.split()):
        return None
    for words, bfloat16, float32 in PEAKS:
        if re.search(rf"(?<![a-z0-9]){words.lower()}(?![a-z0-9])", name):
            return bfloat16 if precision == "bfloat16" else float32
    return None


@dataclass(frozen=True)
class Throughput:
    """The speed of some steps, over all workers."""

    tokens_per_second: float
    images_per_second: float
    mfu: float | None  # 0 to 1; None where the device's peak is not known
    data_wait: float  # 0 to 1: the share of time that the slowest worker waited for data


def throughput(
    *,
    steps: int,
    seconds: float,
    waits: list[float],
    global_batch: int,
    positions: int,
    flops_per_token: int,
    peak: float | None,
) -> Throughput:
    """The speed of `steps` steps that took `seconds`; `waits` are the workers' seconds of waiting.

    peak: FLOP/s of one device, each worker having one.
    """
    images = steps * global_batch / seconds
    tokens = images * positions
    return Throughput(
        tokens_per_second=tokens,
        images_per_second=images,
        mfu=None if peak is None else tokens * flops_per_token / (peak * len(waits)),
        data_wait=min(1.0, max(waits) / seconds),
    )
